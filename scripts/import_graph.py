"""Draws the imports between the rooms of a package: the modules and packages at its top.

    pip install -e ".[dev]" matplotlib
    python scripts/import_graph.py callbacks/stormproof docs/figures/imports_stormproof.svg

Prints the numbers of rooms, imports and cycles. A room is drawn above the rooms that it imports, and a cycle in red. An
import that a longer path implies is counted but not drawn. Imports for type checkers are excluded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grimp
import matplotlib as mpl
import matplotlib.pyplot as plt
import networkx as nx


def rooms_of(folder: Path) -> nx.DiGraph:
    """Returns the rooms of a package and the imports between them, without the package's ``__init__``.

    Args:
        folder: Folder of the package.
    """
    sys.path.insert(0, str(folder.resolve().parent))
    graph = grimp.build_graph(folder.name, exclude_type_checking_imports=True, cache_dir=None)
    rooms = nx.DiGraph()
    for module in sorted(graph.find_children(folder.name)):
        rooms.add_node(module)
        graph.squash_module(module)
    rooms.add_edges_from(
        (importer, imported)
        for importer in rooms
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported in rooms
    )
    return nx.relabel_nodes(rooms, {room: room.removeprefix(f"{folder.name}.") for room in rooms})


def draw(rooms: nx.DiGraph, file: Path) -> None:
    """Writes a picture of the rooms and their imports."""
    groups = nx.condensation(rooms)
    floors = {
        group: floor for floor, members in enumerate(nx.topological_generations(groups.reverse())) for group in members
    }
    nx.set_node_attributes(groups, floors, "floor")
    labels = {group: "\n".join(sorted(members)) for group, members in groups.nodes(data="members")}
    positions = nx.multipartite_layout(groups, subset_key="floor", align="horizontal")
    mpl.rcParams["svg.hashsalt"] = "imports"  # the same graph gives the same file
    widest = max(list(floors.values()).count(floor) for floor in floors.values())
    plt.figure(figsize=(max(8.0, 1.7 * widest), max(5.0, 0.9 * len(set(floors.values())))))
    nx.draw_networkx_edges(
        nx.transitive_reduction(groups), positions, edge_color="0.6", arrowsize=8, node_size=900, width=0.8
    )
    for group, (x, y) in positions.items():
        color = "mistyrose" if len(groups.nodes[group]["members"]) > 1 else "aliceblue"
        box = {"boxstyle": "round", "facecolor": color, "edgecolor": "0.4"}
        plt.text(x, y, labels[group], ha="center", va="center", fontsize=7, bbox=box)
    plt.axis("off")
    plt.margins(0.08)
    plt.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the package")
    parser.add_argument("picture", type=Path, help="file to write, for example an SVG")
    given = parser.parse_args()
    rooms = rooms_of(given.package)
    cycles = [group for group in nx.strongly_connected_components(rooms) if len(group) > 1]
    print(f"{given.package}: {len(rooms)} rooms, {rooms.number_of_edges()} imports, {len(cycles)} cycles")
    draw(rooms, given.picture)


if __name__ == "__main__":
    main()
