"""What TIGRE sees of balls: the oracle of ``rig --from`` with its geometry.

    pip download --no-deps --no-clean pytigre==0.1.8
    python benchmarks/tigre_geometry.py SOURCE tests/converters/tigre

``SOURCE`` is the unpacked source package of pytigre (pip leaves it in the
temporary folder when it finds no CUDA). Writes ``geometry.json``, a geometry
as TIGRE's documentation has it (rows before columns, TIGRE 2) with all angles
and offsets, and ``seen.json``: where TIGRE's projector shows the centres of
three balls. TIGRE projects on a GPU alone; its kernel and what places source
and detector are compiled here for the processor, one pixel after the other.
Needs numpy and g++.
"""

import argparse
import ctypes
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SIZE, PIXEL = (120, 160), (2.2, 2.)  # rows, columns; px, mm
# DSO, DSD (mm); angles ZYZ (rad); offDetector (rows, columns), COR (mm);
# rotDetector (rad).
VIEWS = [(300., 600., (0., 0., 0.), (0., 0.), 0., (0., 0., 0.)),
         (310., 610., (.7, 0., 0.), (9., -12.), 4., (0., 0., 0.)),
         (290., 600., (2.5, .2, -.1), (-7., 5.), -3., (.05, -.08, .06))]
BALLS = [(20., -10., 30.), (-35., 25., -15.), (5., 40., -30.)]  # mm
RADIUS, VOXEL, VOXELS = 3., .25, 32  # mm, mm, px

# What CUDA has and C++ has not.
SHIM = """
#include <algorithm>
#include <cmath>
using namespace std;
#define __global__
#include "types_TIGRE.hpp"
struct Three {{ unsigned x, y, z; }};
static Three threadIdx, blockIdx, blockDim;
static const float* tex;
static int nx, ny, nz;
static float tex3D(const float* t, float x, float y, float z) {{
    int i = floor(x), j = floor(y), k = floor(z);
    if (i < 0 || j < 0 || k < 0 || i >= nx || j >= ny || k >= nz) return 0;
    return t[i + nx * (j + ny * k)];
}}
void rollPitchYaw(Geometry geo, int i, Point3D* point);
void eulerZYZ(Geometry geo, Point3D* point);
{code}
extern "C" void project(const float* values, int n, float voxel,
                        float* orig, float dso, float dsd, float* angles,
                        float* off, float cor, float* turn, int rows,
                        int columns, float row, float column, float* out) {{
    Geometry g;
    tex = values; nx = ny = nz = n;
    g.nVoxelX = g.nVoxelY = g.nVoxelZ = n;
    g.dVoxelX = g.dVoxelY = g.dVoxelZ = voxel;
    g.sVoxelX = g.sVoxelY = g.sVoxelZ = n * voxel;
    float x[2] = {{orig[0], orig[0]}}, y[2] = {{orig[1], orig[1]}},
          z[2] = {{orig[2], orig[2]}}, o[2] = {{dso, dso}},
          d[2] = {{dsd, dsd}}, u[2] = {{off[1], off[1]}},
          v[2] = {{off[0], off[0]}}, c[2] = {{cor, cor}},
          roll[2] = {{turn[2], turn[2]}}, pitch[2] = {{turn[1], turn[1]}},
          yaw[2] = {{turn[0], turn[0]}};
    g.offOrigX = x; g.offOrigY = y; g.offOrigZ = z; g.DSO = o; g.DSD = d;
    g.offDetecU = u; g.offDetecV = v; g.COR = c;
    g.dRoll = roll; g.dPitch = pitch; g.dYaw = yaw;
    g.nDetecU = columns; g.nDetecV = rows;
    g.dDetecU = column; g.dDetecV = row;
    g.alpha = angles[0]; g.theta = angles[1]; g.psi = angles[2];
    Point3D corner, du, dv, source;
    computeDeltas_Siddon(g, 0, &corner, &du, &dv, &source);
    blockIdx = {{0, 0, 0}}; blockDim = {{1, 1, 1}};
    for (threadIdx.x = 0; threadIdx.x < (unsigned)columns; threadIdx.x++)
        for (threadIdx.y = 0; threadIdx.y < (unsigned)rows; threadIdx.y++)
            kernelPixelDetector(g, out, source, du, dv, corner);
}}
"""


def function(text: str, name: str) -> str:
    """Text of a C function, by its braces."""
    start = re.search(r'(__global__ )?void ' + name + r'\([^;{]*\{', text)
    depth, end = 1, start.end()
    while depth:
        depth += {'{': 1, '}': -1}.get(text[end], 0)
        end += 1
    return text[start.start():end]


def compiled(source: Path, folder: Path) -> ctypes.CDLL:
    """TIGRE's projector for the processor."""
    folder = folder / 'tigre'
    folder.mkdir()
    text = (source / 'Siddon_projection.cu').read_text()
    code = '\n'.join(function(text, name) for name in (
        'rollPitchYaw', 'eulerZYZ', 'computeDeltas_Siddon',
        'kernelPixelDetector'))
    # CUDA makes 0 of a negative number that is to be unsigned.
    code = code.replace('unsigned int', 'int')
    (folder / 'projector.cpp').write_text(SHIM.format(code=code))
    library = folder / 'projector.so'
    subprocess.run(
        [shutil.which('g++') or 'g++', '-O2', '-w', '-shared', '-fPIC',
         f'-I{source}', '-o', str(library), str(folder / 'projector.cpp')],
        check=True)
    return ctypes.CDLL(str(library))


def ball() -> np.ndarray:
    """Shares of the voxels that are in the ball."""
    fine = 4
    ticks = (np.arange(VOXELS * fine) + .5) / fine * VOXEL - VOXELS * VOXEL / 2
    inside = (ticks[:, None, None]**2 + ticks[:, None]**2
              + ticks**2) <= RADIUS**2
    return np.ascontiguousarray(inside.reshape(
        [VOXELS, fine] * 3).mean((1, 3, 5)), np.float32)


def main() -> None:
    """Write what is seen."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('out_dir', type=Path)
    args = parser.parse_args()
    found = list(args.source.rglob('Siddon_projection.cu'))
    if not found:
        sys.exit(f'{args.source}: expected Siddon_projection.cu of TIGRE, '
                 'found none')
    with tempfile.TemporaryDirectory() as folder:
        project = compiled(found[0].parent, Path(folder)).project

    def floats(*values):
        return (ctypes.c_float * len(values))(*values)

    number, volume = ctypes.c_float, ball()
    seen = []
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    for centre in BALLS:
        for view, (dso, dsd, angles, off, cor, turn) in enumerate(VIEWS):
            # A column after the other, as MATLAB has them.
            shown = np.zeros((SIZE[1], SIZE[0]), np.float32)
            project(volume.ctypes.data_as(ctypes.c_void_p), VOXELS,
                    number(VOXEL), floats(*centre), number(dso), number(dsd),
                    floats(*angles), floats(*off), number(cor),
                    floats(*turn), *SIZE, *map(number, PIXEL),
                    shown.ctypes.data_as(ctypes.c_void_p))
            shown = np.nan_to_num(shown.T.astype(float))
            mass = shown.sum()
            seen.append(dict(
                view=view, ball=centre,
                column=round(float((columns * shown).sum() / mass), 4),
                row=round(float((rows * shown).sum() / mass), 4)))
    dso, dsd, angles, off, cor, turn = map(list, zip(*VIEWS))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for name, content in (
            ('geometry', dict(
                DSD=dsd, DSO=dso, nDetector=SIZE, dDetector=PIXEL,
                sDetector=[n * p for n, p in zip(SIZE, PIXEL)],
                nVoxel=[64] * 3, sVoxel=[128.] * 3, dVoxel=[2.] * 3,
                offOrigin=[0, 0, 0], offDetector=off, rotDetector=turn,
                COR=cor, mode='cone', accuracy=.5, angles=angles)),
            ('seen', dict(size=SIZE, seen=seen))):
        (args.out_dir / f'{name}.json').write_text(
            json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
