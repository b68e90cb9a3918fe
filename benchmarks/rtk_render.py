"""Views by RTK's CPU Joseph, for ``speed.py render --rtk``.

    python benchmarks/rtk_render.py FOLDER

Needs an environment with numpy and itk-rtk (measured with 2.7.0), which the
project's own has not, and Linux. FOLDER has ``volume.npy`` ((X, Y, Z)
attenuation, 1/mm), ``rig.xml`` (RTK's geometry) and ``about.json``: ``origin``
(3,), ``spacing`` (3,) and ``direction`` (3, 3) of the volume, ``size``,
``pixel`` and ``corner`` of the detector, ``threads`` and ``repeats``. It
leaves ``image.npy``, (views, H, W), rows downwards, and ``took.json``: seconds
and CPU seconds of a view, and what memory the projection took beside the
volume (MB).
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Project once for warmth, then as often as asked."""
    if len(sys.argv) != 2:
        sys.exit('rtk_render: expected a folder')
    try:
        import itk
        from itk import RTK as rtk
    except ImportError:
        sys.exit('rtk_render: expected an environment with itk-rtk, found '
                 'none')
    folder = Path(sys.argv[1])
    about = json.loads((folder / 'about.json').read_text())
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(about['threads'])
    kind = itk.Image[itk.F, 3]
    # ITK's first axis is NumPy's last.
    volume = itk.image_from_array(np.ascontiguousarray(
        np.load(folder / 'volume.npy').T))
    volume.SetOrigin(about['origin'])
    volume.SetSpacing(about['spacing'])
    volume.SetDirection(itk.matrix_from_array(np.array(about['direction'])))
    reader = rtk.ThreeDCircularProjectionGeometryXMLFileReader.New()
    reader.SetFilename(str(folder / 'rig.xml'))
    reader.GenerateOutputInformation()
    geometry = reader.GetOutputObject()
    views = len(geometry.GetGantryAngles())
    empty = rtk.ConstantImageSource[kind].New()
    empty.SetSize([*about['size'], views])
    empty.SetSpacing([*about['pixel'], 1.])
    empty.SetOrigin([*about['corner'], 0.])
    empty.Update()
    memory, seconds, cpu = _peak_mb(anew=True), [], []
    for _ in range(about['repeats'] + 1):
        project = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
        project.SetInput(0, empty.GetOutput())
        project.SetInput(1, volume)
        project.SetGeometry(geometry)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        project.Update()
        seconds.append((time.perf_counter() - begin) / views)
        cpu.append((time.process_time() - cpu_begin) / views)
    np.save(folder / 'image.npy',
            itk.array_from_image(project.GetOutput())[:, ::-1])
    (folder / 'took.json').write_text(json.dumps(dict(
        seconds=statistics.median(seconds[1:]),
        cpu_seconds=statistics.median(cpu[1:]),
        beside_mb=_peak_mb() - memory)))


def _peak_mb(anew: bool = False) -> float:
    if anew:  # from what there is now
        Path('/proc/self/clear_refs').write_text('5')
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


if __name__ == '__main__':
    main()
