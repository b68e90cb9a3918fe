"""Comparisons with simulators that others wrote, without those."""

import numpy as np
import pytest
import xcist


def test_the_phantom_of_xcist_is_seen_by_ours(capsys, monkeypatch):
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
    monkeypatch.setattr('sys.argv', ['xcist.py'])
    with pytest.raises(SystemExit, match='environment with gecatsim'):
        xcist.main()
