"""Bulk moduli of seven metals, by straining crystals: a campaign of 225 tasks on real input.

    pip install -e .[examples]              # once, in the directory above
    python examples/bulk_moduli.py

For each metal that ASE's effective medium theory (EMT) knows: relax the lattice constant, compute the energy at thirty
volumes around it, fit an equation of state to them, and in the end one table against experiment.  The tasks are a DAG,
written down before anything has run: futures are passed where values will be needed.

The campaign has a name, so this may be interrupted at any moment, also by kill -9.  Run again it goes on where it was;
run a third time it computes nothing and prints the table at once.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from balsamfut import Executor, app

# Isothermal bulk moduli at room temperature in GPa, and lattice constants in angstrom: C. Kittel, Introduction to Solid
# State Physics, 8th ed. (Wiley, 2005), chapter 3 table 3 and chapter 1 table 3.
EXPERIMENT = {
    # metal: (modulus, lattice constant)
    "Al": (72.2, 4.05),
    "Cu": (137.0, 3.61),
    "Ag": (100.7, 4.09),
    "Au": (173.2, 4.08),
    "Ni": (186.0, 3.52),
    "Pd": (180.8, 3.89),
    "Pt": (278.3, 3.92),
}
CELLS = 2   # cubic cells along each edge of the crystal: 32 atoms


def crystal(metal: str, a: float) -> Any:
    """A periodic fcc crystal of lattice constant a (angstrom) with the EMT calculator."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    atoms = bulk(metal, "fcc", a=a, cubic=True).repeat(CELLS)
    atoms.calc = EMT()
    return atoms


@app
def relax(metal: str, guess: float) -> float:
    """The lattice constant (angstrom) at which the crystal is under no stress."""
    from ase.filters import StrainFilter
    from ase.optimize import BFGS

    atoms = crystal(metal, guess)
    search = BFGS(StrainFilter(atoms, mask=[1, 1, 1, 0, 0, 0]), logfile=None)
    if not search.run(fmax=1e-4, steps=200):
        raise RuntimeError(f"the lattice of {metal} did not relax in {search.get_number_of_steps()} steps")
    a = float(atoms.get_volume() ** (1 / 3) / CELLS)
    print(f"relaxed {metal}: {guess} -> {a:.4f} angstrom", flush=True)
    return a


@app
def strained(metal: str, a: float, ratio: float) -> tuple[float, float]:
    """Volume (angstrom^3) and energy (eV) per atom of the crystal at `ratio` of its relaxed volume."""
    atoms = crystal(metal, a * ratio ** (1 / 3))
    volume, energy = atoms.get_volume() / len(atoms), atoms.get_potential_energy() / len(atoms)
    print(f"strained {metal} to {ratio:.4f}: {energy:.6f} eV", flush=True)
    return float(volume), float(energy)


@app
def fit(metal: str, points: list[tuple[float, float]]) -> dict[str, Any]:
    """Fit a Birch-Murnaghan equation of state: lattice constant (angstrom) and bulk modulus (GPa)."""
    from ase.eos import EquationOfState
    from ase.units import GPa

    volumes, energies = zip(*points, strict=True)
    volume, energy, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    a = (4 * volume) ** (1 / 3)
    return {"metal": metal, "a": float(a), "energy": float(energy), "modulus": float(modulus / GPa)}


@app
def table(fits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fits beside the experiment; deviation in percent."""
    rows = []
    for row in fits:
        modulus, a = EXPERIMENT[row["metal"]]
        rows.append({**row, "a_experiment": a, "modulus_experiment": modulus,
                     "deviation": 100 * (row["modulus"] / modulus - 1)})
    return rows


def volumes(points: int, width: float = 0.06) -> list[float]:
    """Ratios to the relaxed volume, evenly from 1 - width to 1 + width."""
    return [round(1 - width + 2 * width * i / (points - 1), 6) for i in range(points)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Bulk moduli of seven metals; see the top of this file.")
    parser.add_argument("--points", type=int, default=30, help="volumes for each metal, 5 or more (default: 30)")
    parser.add_argument("--output", type=Path, default=Path("bulk_moduli.csv"), help="(default: bulk_moduli.csv)")
    asked = parser.parse_args()
    if asked.points < 5:
        parser.error("an equation of state of four parameters needs --points 5 or more")

    with Executor(campaign="bulk-moduli"):
        fits, calls = [], []
        for metal, (_, guess) in EXPERIMENT.items():
            a = relax(metal, guess)
            points = [strained(metal, a, ratio) for ratio in volumes(asked.points)]
            fits.append(fit(metal, points))
            calls += [a, *points, fits[-1]]
        result = table(fits)
        rows = result.result()
        calls.append(result)

    known = sum(call.from_cache for call in calls)
    print(f"{len(calls)} tasks, of which {known} were known from an earlier run")
    print(f"{'metal':5} {'a/A':>7} {'exp.':>6}   {'B/GPa':>6} {'exp.':>6} {'dev.':>7}")
    for row in rows:
        print(f"{row['metal']:5} {row['a']:7.4f} {row['a_experiment']:6.2f}   {row['modulus']:6.1f} "
              f"{row['modulus_experiment']:6.1f} {row['deviation']:+6.1f}%")
    with asked.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {asked.output}")


if __name__ == "__main__":
    main()
