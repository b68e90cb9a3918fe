"""Comparisons with simulators that others wrote, without those."""

import gvxr_blade
import numpy as np
import pytest
import rtk_geometry
import rtk_render
import xcist


def test_the_phantom_of_xcist_is_seen_by_ours(capsys):
    """Against itself there is no difference; the nodule and bone are there."""
    shares = xcist.phantom()
    total = shares['water'] + shares['bone']
    assert total.min() == 0 and total.max() <= 1 + 1e-6
    volume = shares['bone'].sum() * xcist.VOXEL**3
    assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=.01)
    mine = xcist.ours(shares, 64, 22.)
    assert mine['mean'].shape == (xcist.VIEWS, 64, 64)
    xcist.tell(mine, mine)
    lines = capsys.readouterr().out.splitlines()
    assert 'mean +0.0000, rms 0.0000' in lines[1]
    assert sum('1.000 +-' in line for line in lines) == 3
    with pytest.raises(SystemExit, match='environment with gecatsim'):
        xcist.main([])


def test_the_surface_for_gvxr_is_closed(tmp_path, capsys):
    """A ball of 8 mm as triangles has its volume, normals look outwards."""
    grid = np.linalg.norm(np.mgrid[-12:13, -12:13, -12:13], axis=0) * .5
    volume = gvxr_blade.write_stl(np.clip(4.25 - grid, 0, .5), .5, .25,
                                  tmp_path / 'ball.stl')
    assert volume == pytest.approx(4 / 3 * np.pi * 4**3, rel=.02)
    triangles = np.frombuffer((tmp_path / 'ball.stl').read_bytes()[84:], [
        ('normal', '<f4', 3), ('points', '<f4', (3, 3)), ('rest', '<u2')])
    outwards = (triangles['normal'] * triangles['points'].mean(1)).sum(1)
    assert (outwards > 0).all()
    views = np.full((1, 20, 20), 3.)
    gvxr_blade.tell(views, views + .3, views + 4)
    assert 'mean +0.300 (+10.00 %)' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='environment with gvxr'):
        gvxr_blade.main([])


def test_the_oracle_of_rtk_needs_rtk(monkeypatch, tmp_path):
    monkeypatch.setattr('sys.argv', ['rtk_geometry.py', str(tmp_path)])
    with pytest.raises(SystemExit, match='environment with itk-rtk'):
        rtk_geometry.main()
    monkeypatch.setattr('sys.argv', ['rtk_render.py', str(tmp_path)])
    with pytest.raises(SystemExit, match='environment with itk-rtk'):
        rtk_render.main()
    assert list(tmp_path.iterdir()) == []
