"""Make projects/core/spectra.json: python tools/make_spectra.py

Needs SpekPy and XrayDB (``pip install spekpy==2.5.4 xraydb==4.5.8``) in an
environment of its own; whoever uses the spectra does not.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

try:
    import spekpy
    import xraydb
except ImportError as missing:
    sys.exit(f'make_spectra.py: error: {missing.name}: expected the packages '
             'spekpy and xraydb, found none; install them in an environment '
             'of their own')

OUT = Path(__file__).parent.parent / 'projects/core/spectra.json'
# Caesium iodide of a flat panel: 0.6 mm of columns that fill 75 % absorb 0.74
# of the quanta of the open 120 kV beam.
SCINTILLATOR_G_CM2 = .06 * .75 * 4.51
# Mass fractions of cortical bone, ICRU report 44.
BONE = dict(H=.034, C=.155, N=.042, O=.435, Na=.001, Mg=.002, P=.103, S=.003,
            Ca=.225)
MATERIALS = {
    'water': (dict(H=.1119, O=.8881), 1.),
    'cortical_bone': (BONE, 1.92),
    'nickel': (dict(Ni=1.), 8.9),
}
BEAMS = {
    '120 kV, 2.5 mm Al, 0.2 mm Cu': dict(
        kvp=120, filters=[('Al', 2.5), ('Cu', .2)],
        materials=['water', 'cortical_bone'], bins=8, lengths=(0, 300)),
    '225 kV, 1 mm Cu': dict(
        kvp=225, filters=[('Al', 2.5), ('Cu', 1.)],
        materials=['nickel'], bins=16, lengths=(0, 40)),
    '300 kV, 2 mm Cu': dict(
        kvp=300, filters=[('Al', 2.5), ('Cu', 2.)],
        materials=['nickel'], bins=16, lengths=(0, 40)),
}


def attenuation(material: str, energies: np.ndarray) -> np.ndarray:
    """Total attenuation (1/mm) at energies (keV)."""
    fractions, density = MATERIALS[material]
    per_mass = sum(share * xraydb.mu_elam(element, energies * 1e3)
                   for element, share in fractions.items())
    return per_mass * density / 10


def absorption(energies: np.ndarray) -> np.ndarray:
    """Share of the quanta that the scintillator absorbs."""
    weights = xraydb.atomic_mass('Cs'), xraydb.atomic_mass('I')
    per_mass = sum(
        w / sum(weights) * xraydb.mu_elam(element, energies * 1e3)
        for element, w in zip(('Cs', 'I'), weights))
    return 1 - np.exp(-per_mass * SCINTILLATOR_G_CM2)


def beam(kvp: int, filters: list, materials: list, bins: int,
         lengths: tuple) -> dict:
    """One spectrum as a detector sees it, in a few energies."""
    source = spekpy.Spek(kvp=kvp, th=12, z=100)
    source.multi_filter(filters)
    energies, fluence = source.get_spectrum()
    absorbed = fluence * absorption(energies)
    signal = absorbed * energies
    mu = {m: attenuation(m, energies) for m in materials}
    # Equal parts of the signal, half of it as it is behind an object, so that
    # the energies that get through have bins of their own.
    behind = signal * np.exp(-mu[materials[0]] * lengths[1])
    share = (signal / signal.sum() + behind / behind.sum()) / 2
    which = np.minimum((np.cumsum(share) - share / 2) * bins, bins - 1
                       ).astype(int)

    def of_bins(function):
        return [float(f'{function(which == b):.6g}') for b in range(bins)]

    def mean(values):
        return of_bins(lambda b: np.average(values[b], weights=share[b]))

    depths = np.linspace(*lengths, 7)
    left = (signal * np.exp(-mu[materials[0]] * depths[:, None])).sum(1)

    return dict(
        kvp=kvp, filters_mm=[list(f) for f in filters],
        quanta_per_mm2_ugy=round(
            source.get_flu() / source.get_kerma() / 100, 1),
        absorbed_share=round(float(absorbed.sum() / fluence.sum()), 4),
        energies_kev=mean(energies),
        signal_share=of_bins(lambda b: signal[b].sum() / signal.sum()),
        mu_per_mm={m: mean(mu[m]) for m in materials},
        mean_energy_kev=round(source.get_emean(), 3),
        half_value_layer_al_mm=round(source.get_hvl1(), 4),
        check=dict(
            material=materials[0],
            length_mm=depths.round(6).tolist(),
            minus_log=[float(f'{v:.5g}')
                       for v in -np.log(left / signal.sum())]))


def main() -> None:
    """Write all beams."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    content = dict(
        made_by=f'SpekPy {spekpy.__version__}, XrayDB '
        f'{xraydb.__version__}; 0.6 mm CsI, energy-integrating',
        beams={name: beam(**settings) for name, settings in BEAMS.items()})
    OUT.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    print(f'{OUT}: {len(BEAMS)} beams')


if __name__ == '__main__':
    main()
