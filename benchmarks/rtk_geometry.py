"""What RTK sees of balls: the oracle of ``rig --from`` and ``rig --to``.

    python benchmarks/rtk_geometry.py tests/converters/rtk
    python benchmarks/rtk_geometry.py FOLDER --geometry rig.xml

The first line writes ``geometry.xml``, as RTK's own writer does, of three
views with all of its angles and offsets, and ``seen.json``: where RTK's
projector shows the centres of three balls. The second looks through another
file. Needs an environment with numpy and itk-rtk (measured with 2.7.0), which
the project's own has not.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

SIZE, SPACING, ORIGIN = (160, 120), (2., 2.), (-150., -125.)  # px, mm, mm
# Source to isocentre and to detector, gantry; offsets of projection; out of
# plane, in plane; offsets of source (mm, degrees).
VIEWS = [(300., 600., 0.),
         (310., 610., 36., 2., -3., 1.5, 2., 4., -1.5),
         (290., 600., 155., -8., 5., -4., 3., -2., 6.)]
BALLS = [(20., -10., 30.), (-35., 25., -15.), (5., 40., -30.)]  # mm
RADIUS = 3.  # mm


def main() -> None:
    """Write what is seen."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('out_dir', type=Path)
    parser.add_argument('--geometry', type=Path)
    parser.add_argument('--size', type=int, nargs=2, default=SIZE)
    parser.add_argument('--spacing', type=float, nargs=2, default=SPACING)
    args = parser.parse_args()
    try:
        import itk
        from itk import RTK as rtk
    except ImportError:
        sys.exit('rtk_geometry: expected an environment with itk-rtk, found '
                 'none')
    if args.geometry:
        reader = rtk.ThreeDCircularProjectionGeometryXMLFileReader.New()
        reader.SetFilename(str(args.geometry))
        reader.GenerateOutputInformation()
        geometry = reader.GetOutputObject()
        origin = [-(n - 1) / 2 * s for n, s in zip(args.size, args.spacing)]
    else:
        geometry = rtk.ThreeDCircularProjectionGeometry.New()
        for view in VIEWS:
            geometry.AddProjection(*view)
        writer = rtk.ThreeDCircularProjectionGeometryXMLFileWriter.New()
        writer.SetFilename(str(args.out_dir / 'geometry.xml'))
        writer.SetObject(geometry)
        writer.WriteFile()
        origin = list(ORIGIN)
    image = itk.Image[itk.F, 3]
    views = len(geometry.GetGantryAngles())
    empty = rtk.ConstantImageSource[image].New()
    empty.SetSize([*args.size, views])
    empty.SetSpacing([*args.spacing, 1.])
    empty.SetOrigin([*origin, 0.])
    seen = []
    for ball in BALLS:
        project = rtk.RayEllipsoidIntersectionImageFilter[image, image].New()
        project.SetInput(empty.GetOutput())
        project.SetGeometry(geometry)
        project.SetAxis([RADIUS] * 3)
        project.SetCenter(list(ball))
        project.SetDensity(1.)
        project.Update()
        shown = itk.array_from_image(project.GetOutput())
        rows, columns = np.mgrid[:args.size[1], :args.size[0]]
        for view in range(views):
            mass = shown[view].sum()
            seen.append(dict(
                view=view, ball=ball,
                column=round(float((columns * shown[view]).sum() / mass), 4),
                row=round(float((rows * shown[view]).sum() / mass), 4)))
    (args.out_dir / 'seen.json').write_text(json.dumps(dict(
        size=args.size, pixel=args.spacing[0], origin=origin, seen=seen),
        indent=1) + '\n')


if __name__ == '__main__':
    main()
