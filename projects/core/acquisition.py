"""What a detector delivers instead of ideal line integrals.

Ideal line integrals (a reference attenuation times length, no unit) become
counts: spectrum and beam hardening, scatter, focal spot, quantum noise, light
spread, lag, gain, dead pixels, electronic noise. The usual corrections make
line integrals of them again: gain, dead pixels, scatter, logarithm.
The same code writes test views and draws what a training sees.

Every number is data: beams in ``spectra.json`` (made by
``tools/make_spectra.py``), presets in ``acquisitions.json``, each with its
source. Lengths are mm in the detector's plane, pixels are nowhere.

Shapes: V views, H and W of an image.
"""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from scipy import fft, ndimage

from projects.core import geometry
from projects.core.projections import fill_dead

__all__ = [
    'BONE_IN_WATER', 'Acquisition', 'Counts', 'Detector', 'Exposure',
    'Spectrum', 'draw_acquisition', 'load_preset', 'load_spectrum', 'presets'
]

_HERE = Path(__file__).parent
# What cortical bone counts as in ideal line integrals, in its length of water:
# its attenuation at their energy, that of bone of 1500 HU.
BONE_IN_WATER = 2.5
# A pixel that counts nothing still has a line integral: that of half a
# quantum.
_LEAST = .5
_NOTHING = np.float32(1e-20)  # of the open beam
_POISSON = 30.  # quanta up to which noise is drawn from Poisson's law
_SCATTER_CELLS = 64  # per side: scatter is smooth
_PEDESTAL = 100.  # counts without a beam, and eight times the readout's noise
_HEADROOM = 1.25  # of 16 bits over the open beam


@dataclass(frozen=True)
class Spectrum:
    """A beam as an energy-integrating detector sees it.

    Attributes:
        signal: (E,) share of each energy in the open beam's signal.
        mu: Attenuation (1/mm) of each material, (E,).
        energies: (E,) (keV).
        quanta_per_mm2_ugy: Quanta for each mm² and µGy of air kerma.
        absorbed: Share of the open beam's quanta that the detector absorbs.
    """
    signal: np.ndarray
    mu: Dict[str, np.ndarray]
    energies: np.ndarray
    quanta_per_mm2_ugy: float
    absorbed: float

    def transmission(self, **lengths: np.ndarray) -> np.ndarray:
        """Share of the signal that is left behind lengths of materials (mm),
        all of one shape."""
        return self.behind(**lengths)[0]

    def behind(self, **lengths: np.ndarray
               ) -> Tuple[np.ndarray, np.ndarray]:
        """:meth:`transmission`, and that times what one of its quanta gives
        to the signal, over one of the open beam: those that are left are
        harder, and fewer than their signal seems to say."""
        shape = np.shape([*lengths.values()][0])
        total, harder = np.zeros((2, *shape), np.float32)
        energies = self.energies / self.mean_energy()
        for row, weight in enumerate(self.signal):
            depth = sum(
                np.float32(self.mu[name][row]) * length
                for name, length in lengths.items())
            left = np.float32(weight) * np.exp(-depth)
            total += left
            harder += np.float32(energies[row]) * left
        return total, harder

    def mean_energy(self, **lengths: float) -> float:
        """Of the signal behind lengths of materials (keV)."""
        left = self.signal * np.exp(-sum(
            self.mu[name] * length
            for name, length in lengths.items()))
        return float((left * self.energies).sum() / left.sum())


@dataclass
class Exposure:
    """What the detector writes, in quanta of the open beam.

    Attributes:
        raw: (V, H, W), with the object.
        flat: (H, W), without the object.
        dead: Boolean (H, W).
        scatter: (V, H, W), what an ideal correction would take off.
    """
    raw: np.ndarray
    flat: np.ndarray
    dead: np.ndarray
    scatter: np.ndarray


@dataclass
class Counts:
    """What a detector's files hold: whole counts, one for each quantum of the
    open beam, in 16 bits, or in floats of 32 bits where that has too many.

    Attributes:
        raw: (V, H, W), with the object.
        flat: (H, W), without the object, as if averaged until no noise is
            left.
        dark: (H, W), without a beam, the same way.
        dead: (H, W) uint8, 255 where a pixel is dead.
    """
    raw: np.ndarray
    flat: np.ndarray
    dark: np.ndarray
    dead: np.ndarray


@dataclass
class Detector:
    """Views of one detector.

    Attributes:
        rows: Which of the views.
        exposure: What it writes of them.
        views: (V, H, W), line integrals after its corrections.
        pixel: Side of its pixels (mm).
    """
    rows: List[int]
    exposure: Exposure
    views: np.ndarray
    pixel: float


@dataclass(frozen=True)
class Acquisition:
    """Conditions of an acquisition; the defaults change nothing but noise
    and spectrum.

    Attributes:
        spectrum: Name of a beam in ``spectra.json``; empty for ideal views.
        material: What the ideal line integrals are of: 'water', 'nickel'.
        reference_mu: Attenuation (1/mm) of that material in the ideal line
            integrals.
        magnification: Source to detector over source to isocentre: detectors'
            pixels are that much larger than those at the isocentre.
        kerma: Air kerma of a view at the detector, without object (µGy).
        noise: Whether quanta are counted, or their mean is taken.
        swank: Information of a quantum's signal in the open beam, 1 if all
            are alike.
        focal_spot: Side of the square focal spot (mm).
        light_spread: H (mm²) of the detector's MTF 1 / (1 + H f²), f in
            1/mm.
        scatter: Share k of what the object takes from the beam that arrives
            as scatter, S = k * blur(1 - T).
        scatter_width: Standard deviation of that blur (mm).
        scatter_corrected: Share of the scatter that the correction removes.
        scatter_error: Relative deviation of the correction, smooth.
        scatter_error_width: Its correlation length (mm).
        electronic: Noise of a native pixel (quanta, rms).
        native_pixel: Its side (mm); larger pixels are sums of native ones.
        gain: Deviation of the gain since the flat image was taken (rms).
        dead: Share of pixels that are dead.
        lag: Share of the view before that is still there; before the first
            view its like was taken.
        motion: Range of the object's shift between views (mm) along the
            patient's axis; half of it from front to back, a third across.
        pose_shift: Error of a view's recorded pose (mm, each axis, rms).
        pose_angle: The same (degrees, each axis, rms).
    """
    spectrum: str = ''
    material: str = 'water'
    reference_mu: float = .02
    magnification: float = 2.
    kerma: float = 22.
    noise: bool = True
    swank: float = 1.
    focal_spot: float = 0.
    light_spread: float = 0.
    scatter: float = 0.
    scatter_width: float = 150.
    scatter_corrected: float = 0.
    scatter_error: float = 0.
    scatter_error_width: float = 120.
    electronic: float = 0.
    native_pixel: float = .139
    gain: float = 0.
    dead: float = 0.
    lag: float = 0.
    motion: float = 0.
    pose_shift: float = 0.
    pose_angle: float = 0.

    @property
    def hardened_by_bone(self) -> bool:
        """Whether the beam tells bone from as much water."""
        return self.material == 'water' and bool(self.spectrum) and (
            'cortical_bone' in load_spectrum(self.spectrum).mu)

    # ---------------------------------------------------------------- views
    def measure(self, line_integrals: np.ndarray, pixel_size: float,
                rng: np.random.Generator,
                bone: Optional[np.ndarray] = None) -> np.ndarray:
        """Measured line integrals of ideal ones.

        Args:
            line_integrals (np.ndarray): (V, H, W), of ``reference_mu``.
            pixel_size (float): Of a view at the isocentre (mm).
            rng (np.random.Generator): Of all that is random.
            bone (np.ndarray, optional): (V, H, W) cortical bone on each ray
                (mm), which is part of ``line_integrals`` as
                ``BONE_IN_WATER`` times its length of water.

        Returns:
            np.ndarray: (V, H, W) float32; the ideal ones where there is no
            spectrum.
        """
        if not self.spectrum or not len(line_integrals):
            return np.asarray(line_integrals, np.float32)
        exposure = self.expose(line_integrals, pixel_size, rng, bone)
        return self.correct(exposure, pixel_size, rng)

    def measure_views(self, images: Sequence[np.ndarray],
                      pixel_sizes: Sequence[float],
                      rng: np.random.Generator) -> List[np.ndarray]:
        """As :meth:`measure`, of views that may differ, see
        :meth:`detectors`."""
        measured = list(images)
        for detector in self.detectors(images, pixel_sizes, rng):
            for row, view in zip(detector.rows, detector.views):
                measured[row] = view
        return measured

    def detectors(self, images: Sequence[np.ndarray],
                  pixel_sizes: Sequence[float], rng: np.random.Generator,
                  bones: Optional[Sequence[np.ndarray]] = None
                  ) -> Iterator[Detector]:
        """Views that may differ, measured: those of one size are of one
        detector. There are no detectors where there is no spectrum.

        Args:
            images (Sequence[np.ndarray]): (H, W) ideal line integrals each.
            pixel_sizes (Sequence[float]): At the isocentre (mm).
            rng (np.random.Generator): Of all that is random.
            bones (Sequence[np.ndarray], optional): (H, W) cortical bone
                each, see :meth:`measure`.
        """
        kinds = [(*image.shape, round(float(size), 9))
                 for image, size in zip(images, pixel_sizes)]
        for kind in dict.fromkeys(kinds) if self.spectrum else ():
            rows = [i for i, other in enumerate(kinds) if other == kind]
            exposure = self.expose(
                np.stack([images[i] for i in rows]), kind[2], rng,
                None if bones is None else np.stack(
                    [bones[i] for i in rows]))
            yield Detector(rows, exposure,
                           self.correct(exposure, kind[2], rng),
                           kind[2] * self.magnification)

    def expose(self, line_integrals: np.ndarray, pixel_size: float,
               rng: np.random.Generator,
               bone: Optional[np.ndarray] = None) -> Exposure:
        """What the detector writes, see :meth:`measure`."""
        beam = load_spectrum(self.spectrum)
        pixel = pixel_size * self.magnification
        length = np.asarray(line_integrals, np.float32) / np.float32(
            self.reference_mu)
        lengths = {self.material: length}
        if bone is not None:
            bone = np.asarray(bone, np.float32)
            lengths = {
                self.material: length - np.float32(BONE_IN_WATER) * bone,
                'cortical_bone': bone}
        primary, harder = beam.behind(**lengths)
        scatter = self._scatter(primary, pixel)
        # Scattered quanta are about as hard as those of the open beam.
        size = (harder + scatter + _NOTHING) / (primary + scatter + _NOTHING)
        # A square's shadow at the detector has its side times (M - 1).
        blur = self.focal_spot * (self.magnification - 1) / np.sqrt(12)
        primary = _blurred(primary, blur / pixel)
        open_beam = self._open(pixel)
        quanta = self._counted(open_beam * (primary + scatter), rng, size)
        if self.lag:
            before = np.roll(quanta, 1, 0)
            before[0] = quanta[0]  # as if the scan had gone on before
            quanta = (1 - self.lag) * quanta + self.lag * before
        if self.light_spread:
            quanta = self._spread(quanta, pixel)
        shape = quanta.shape[1:]
        gain = (1 + self.gain * rng.standard_normal(shape)).astype(np.float32)
        quanta = quanta * gain
        quanta += self._readout(pixel) * rng.standard_normal(
            quanta.shape, np.float32)
        dead = rng.random(shape) < self.dead
        quanta[:, dead] = 0
        flat = np.full(shape, open_beam, np.float32)
        flat[dead] = 0
        return Exposure(quanta, flat, dead, open_beam * scatter)

    def correct(self, exposure: Exposure, pixel_size: float,
                rng: np.random.Generator) -> np.ndarray:
        """Line integrals (V, H, W) of what a detector wrote: gain, dead
        pixels, scatter, logarithm."""
        pixel = pixel_size * self.magnification
        signal, flat = exposure.raw, exposure.flat
        if exposure.dead.any():
            signal = fill_dead(signal, exposure.dead)
            flat = fill_dead(flat[None], exposure.dead)[0]
        removed = np.float32(self.scatter_corrected) * exposure.scatter
        if self.scatter_error and self.scatter_corrected:
            removed = removed * (1 + self.scatter_error * _smooth_noise(
                removed.shape, self.scatter_error_width / pixel, rng))
        # What is left is never less than a twentieth, or the correction
        # itself would make holes.
        primary = np.maximum(signal - removed, signal / 20)
        return -np.log(np.maximum(primary, _LEAST) / flat)

    def counts(self, detector: Detector) -> Counts:
        """What the detector's files hold: the line integrals are
        -log((raw - dark) / (flat - dark)), before all other corrections."""
        exposure, pixel = detector.exposure, detector.pixel
        level = np.ceil(_PEDESTAL + 8 * self._readout(pixel))
        kind = np.uint16 if (_HEADROOM * self._open(pixel) + level
                             <= np.iinfo(np.uint16).max) else np.float32

        def whole(quanta: np.ndarray) -> np.ndarray:
            counts = np.maximum(np.rint(quanta + level), 0)
            if kind is np.uint16:  # a converter's last level
                counts = np.minimum(counts, np.iinfo(np.uint16).max)
            return counts.astype(kind)

        return Counts(
            whole(exposure.raw), whole(exposure.flat),
            np.full(exposure.flat.shape, level, kind),
            exposure.dead.astype(np.uint8) * 255)

    def _open(self, pixel: float) -> float:
        """Quanta that a pixel (mm) absorbs of the open beam."""
        beam = load_spectrum(self.spectrum)
        return (beam.quanta_per_mm2_ugy * beam.absorbed * self.kerma *
                pixel**2)

    def _readout(self, pixel: float) -> np.float32:
        """Electronic noise of a pixel (mm), in quanta."""
        return np.float32(
            self.electronic * max(pixel / self.native_pixel, 1.))

    def _counted(self, mean: np.ndarray, rng: np.random.Generator,
                 size: Optional[np.ndarray] = None) -> np.ndarray:
        """Signal where so much is expected, in quanta of the open beam:
        compound Poisson, whose variance is mean * size / swank if one quantum
        gives ``size`` (1 if None)."""
        mean = mean.astype(np.float32)
        if not self.noise:
            return mean
        if size is not None:
            mean = mean / size
        noise = rng.standard_normal(mean.shape, np.float32)
        counted = mean + np.sqrt(mean / np.float32(self.swank)) * noise
        few = mean < _POISSON
        if few.any():
            counted[few] = rng.poisson(mean[few]) + np.sqrt(
                mean[few] * np.float32(1 / self.swank - 1)) * noise[few]
        return counted if size is None else counted * size

    def _scatter(self, primary: np.ndarray, pixel: float) -> np.ndarray:
        """Scatter (V, H, W) over the open beam's signal."""
        if not self.scatter:
            return np.zeros_like(primary)
        height, width = primary.shape[1:]
        zoom = max(max(height, width) // _SCATTER_CELLS, 1)
        small = _shrunk(1 - primary, zoom)
        sigma = self.scatter_width / pixel / zoom
        # Beside the detector there is no object.
        small = ndimage.gaussian_filter(
            small, (0, sigma, sigma), mode='constant', truncate=3)
        return np.float32(self.scatter) * _grown(small, zoom, height, width)

    def _spread(self, quanta: np.ndarray, pixel: float) -> np.ndarray:
        """Light spread of the scintillator, after the noise, which it
        correlates."""
        edge = int(np.ceil(3 * np.sqrt(self.light_spread) / pixel)) + 1
        padded = np.pad(quanta, ((0, 0), (edge, edge), (edge, edge)), 'edge')
        v = fft.fftfreq(padded.shape[1], pixel)[:, None]
        u = fft.rfftfreq(padded.shape[2], pixel)[None]
        mtf = 1 / (1 + self.light_spread * (u**2 + v**2))
        spread = fft.irfft2(fft.rfft2(padded) * mtf.astype(np.float32),
                            padded.shape[1:])
        return spread[:, edge:-edge, edge:-edge].astype(np.float32)

    # ---------------------------------------------------------------- poses
    def taken_from(self, ct2cam: np.ndarray,
                   rng: np.random.Generator) -> np.ndarray:
        """Poses (V, 4, 4) that views were taken from whose recorded poses are
        ``ct2cam``: the object moved, and the record is not exact."""
        reach = self.motion * np.array([1 / 3, 1 / 2, 1.])
        taken = []
        for pose in np.asarray(ct2cam, dtype=np.float64):
            shift = rng.uniform(-.5, .5, 3) * reach
            moved = geometry.rigid_motion(np.zeros(3), shift)
            error = geometry.rigid_motion(
                np.radians(self.pose_angle) * rng.standard_normal(3),
                self.pose_shift * rng.standard_normal(3))
            taken.append(pose @ error @ moved)
        return np.stack(taken)


# --------------------------------------------------------------------- images
def _blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a deviation (px)."""
    if sigma < .05:
        return images
    return ndimage.gaussian_filter(images, (0, sigma, sigma), mode='nearest')


def _shrunk(images: np.ndarray, zoom: int) -> np.ndarray:
    """Means of blocks; what does not fill one is repeated."""
    height, width = images.shape[1:]
    images = np.pad(images, ((0, 0), (0, -height % zoom), (0, -width % zoom)),
                    'edge')
    count, height, width = images.shape
    return images.reshape(count, height // zoom, zoom, width // zoom,
                          zoom).mean((2, 4))


def _grown(images: np.ndarray, zoom: int, height: int,
           width: int) -> np.ndarray:
    """Inverse of :func:`_shrunk` for smooth images."""
    if zoom == 1:
        return images
    size = (images.shape[2] * zoom, images.shape[1] * zoom)
    return np.stack([
        cv2.resize(image.astype(np.float32), size,
                   interpolation=cv2.INTER_LINEAR)[:height, :width]
        for image in images])


def _smooth_noise(shape: Tuple[int, ...], width: float,
                  rng: np.random.Generator) -> np.ndarray:
    """Noise of deviation 1 (V, H, W) with a correlation length (px)."""
    count, rows, columns = shape
    zoom = max(int(width / 2), 1)
    coarse = rng.standard_normal(
        (count, -(-rows // zoom) + 8, -(-columns // zoom) + 8))
    sigma = width / zoom / np.sqrt(2)
    coarse = ndimage.gaussian_filter(coarse, (0, sigma, sigma), mode='wrap')
    # What a Gaussian of that width leaves of white noise.
    coarse *= 2 * np.sqrt(np.pi) * sigma
    return _grown(coarse[:, 4:-4, 4:-4], zoom, rows, columns)


# ----------------------------------------------------------------------- data
@functools.lru_cache(maxsize=None)
def load_spectrum(name: str) -> Spectrum:
    """A beam of ``spectra.json``.

    Raises:
        ValueError: There is none of that name.
    """
    beams = json.loads((_HERE / 'spectra.json').read_text())['beams']
    if name not in beams:
        raise ValueError(f'spectrum: expected one of {", ".join(beams)}, '
                         f'found {name}')
    beam = beams[name]
    return Spectrum(
        np.array(beam['signal_share']),
        {k: np.array(v) for k, v in beam['mu_per_mm'].items()},
        np.array(beam['energies_kev']), beam['quanta_per_mm2_ugy'],
        beam['absorbed_share'])


def presets() -> Dict[str, dict]:
    """Of ``acquisitions.json``: ``about``, ``values`` and their
    ``sources``."""
    return json.loads((_HERE / 'acquisitions.json').read_text())


def load_preset(name: str) -> Acquisition:
    """Conditions of a preset.

    Raises:
        ValueError: There is none of that name.
    """
    known = presets()
    if name not in known:
        raise ValueError(f'acquisition: expected one of {", ".join(known)}, '
                         f'found {name}')
    return Acquisition(**known[name]['values'])


def draw_acquisition(
        ranges: Dict[str, Any],
        rng: np.random.Generator) -> Acquisition:
    """Conditions drawn from ranges.

    Args:
        ranges (dict): Fields of :class:`Acquisition`; a pair is a range, drawn
            uniformly, of the kerma log-uniformly; a list of pairs is a choice
            of ranges, each as likely; anything else is a value.
        rng (np.random.Generator): To draw from.

    Raises:
        ValueError: There is no such field.
    """
    known = {field.name for field in dataclasses.fields(Acquisition)}
    values: Dict[str, Any] = {}
    for name, value in ranges.items():
        if name not in known:
            raise ValueError(f'acquisition: expected fields of '
                             f'{", ".join(sorted(known))}, found {name}')
        if isinstance(value, (list, tuple)):
            if isinstance(value[0], (list, tuple)):
                value = value[rng.integers(len(value))]
            low, high = value
            value = float(
                np.exp(rng.uniform(np.log(low), np.log(high)))
                if name == 'kerma' else rng.uniform(low, high))
        values[name] = value
    return Acquisition(**values)
