"""Draws the import graph of a package's top-level modules and packages.

    pip install -e ".[dev]"
    python scripts/import_graph.py callbacks/stormproof docs/figures/imports_stormproof.svg

Prints the numbers of modules and packages, of imports between them, and of cycles. The figure shows the transitive
reduction, with importers above what they import and cycles in pink. Imports under ``TYPE_CHECKING`` are excluded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grimp
import matplotlib as mpl
import matplotlib.pyplot as plt
import networkx as nx


def import_graph(folder: Path) -> nx.DiGraph:
    """Returns the top-level modules and packages and the imports between them, without the package's ``__init__``.

    Args:
        folder: Folder of the package.
    """
    sys.path.insert(0, str(folder.resolve().parent))
    modules = grimp.build_graph(folder.name, exclude_type_checking_imports=True, cache_dir=None)
    imports = nx.DiGraph()
    for module in sorted(modules.find_children(folder.name)):
        imports.add_node(module)
        modules.squash_module(module)
    imports.add_edges_from(
        (importer, imported)
        for importer in imports
        for imported in modules.find_modules_directly_imported_by(importer)
        if imported in imports
    )
    return nx.relabel_nodes(imports, {module: module.removeprefix(f"{folder.name}.") for module in imports})


def write_figure(imports: nx.DiGraph, file: Path) -> None:
    """Writes a figure of the import graph."""
    components = nx.condensation(imports)
    generations = enumerate(nx.topological_generations(components.reverse()))
    levels = {component: level for level, members in generations for component in members}
    nx.set_node_attributes(components, levels, "level")
    positions = nx.multipartite_layout(components, subset_key="level", align="horizontal")
    widest = max(list(levels.values()).count(level) for level in levels.values())
    mpl.rcParams["svg.hashsalt"] = "imports"  # makes SVG ids reproducible
    plt.figure(figsize=(max(8.0, 1.7 * widest), max(5.0, 0.9 * len(set(levels.values())))))
    nx.draw_networkx_edges(
        nx.transitive_reduction(components), positions, edge_color="0.6", arrowsize=8, node_size=900, width=0.8
    )
    for component, (x, y) in positions.items():
        members = sorted(components.nodes[component]["members"])
        color = "mistyrose" if len(members) > 1 else "aliceblue"
        box = {"boxstyle": "round", "facecolor": color, "edgecolor": "0.4"}
        plt.text(x, y, "\n".join(members), ha="center", va="center", fontsize=7, bbox=box)
    plt.axis("off")
    plt.margins(0.08)
    plt.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the package")
    parser.add_argument("figure", type=Path, help="file to write, for example an SVG")
    args = parser.parse_args()
    imports = import_graph(args.package)
    cycles = [component for component in nx.strongly_connected_components(imports) if len(component) > 1]
    edges = imports.number_of_edges()
    print(f"{args.package}: {len(imports)} modules and packages, {edges} imports, {len(cycles)} cycles")
    write_figure(imports, args.figure)


if __name__ == "__main__":
    main()
