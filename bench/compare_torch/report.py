"""Tables, JSON and plot of a comparison.

A result is {"batch", "length", "competitors": {name: entry}}; an entry has "ms", "wall_ms",
"activation_bytes" and "relative_error" or, where the competitor failed, "failure".
"""

import json

RATIOS = (("dense-compiled", "ours"), ("lowrank-graph", "ours"))
# Ours may err this much more than PyTorch's low-rank model at the same dtype.
ERROR_MARGIN = 1.5
# Beyond this, outputs are of different functions.
ERROR_LIMIT = 0.1
LOW_RANK = ("lowrank-graph", "lowrank-compiled", "lowrank-eager")
DENSE = ("dense-graph", "dense-compiled", "dense-eager")


def value(result, name, field):
    entry = result["competitors"].get(name, {})
    return entry.get(field)


def ratio(result, numerator, denominator, field="ms"):
    a, b = value(result, numerator, field), value(result, denominator, field)
    return a / b if a and b else None


def yardstick(result):
    """PyTorch's own error with the same model (dense, where nothing is compressed), and whose."""
    for name in LOW_RANK + DENSE:
        error = value(result, name, "relative_error")
        if error is not None:
            return error, name
    return None, None


def problems(results):
    """What makes the comparison fail, a line each."""
    lines = []
    for result in results:
        case = f"{result['batch']}x{result['length']}"
        for name, entry in result["competitors"].items():
            error = entry.get("relative_error")
            if name == "ours" and "failure" in entry:
                lines.append(f"{case} ours: {entry['failure']}")
            if error is not None and name != "paper" and not error <= ERROR_LIMIT:
                lines.append(f"{case} {name}: relative error {error:.1e}: another function")
        error = value(result, "ours", "relative_error")
        theirs, name = yardstick(result)
        if error is not None and theirs is not None and not error <= ERROR_MARGIN * theirs:
            lines.append(f"{case} ours: relative error {error:.1e} is more than {ERROR_MARGIN} x "
                         f"{theirs:.1e} of {name}")
    return lines


def aligned(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths)) for row in rows)


def table(results, names, field, text, extra=()):
    """A row a case, a column a competitor; `extra` columns are (heading, function of result)."""
    rows = [["batch x length", *names, *(heading for heading, _ in extra)]]
    for result in results:
        row = [f"{result['batch']} x {result['length']}"]
        for name in names:
            number = value(result, name, field)
            failed = value(result, name, "failure") is not None
            row.append(text(number) if number is not None else "failed" if failed else "-")
        rows.append(row + [function(result) for _, function in extra])
    return aligned(rows)


def ratio_column(numerator, denominator, field):
    def cell(result):
        r = ratio(result, numerator, denominator, field)
        return "-" if r is None else f"{r:.2f}"
    return f"{numerator} / {denominator}", cell


def accuracy_column(bad_cases):
    def cell(result):
        if f"{result['batch']}x{result['length']}" in bad_cases:
            return "FAIL"
        return "-" if value(result, "ours", "relative_error") is None else "ok"
    return "accuracy", cell


def text(results, names):
    def times(field):
        ratios = [ratio_column(a, b, field) for a, b in RATIOS if a in names and b in names]
        return table(results, names, field, "{:.3f}".format, ratios)

    bad = {line.split()[0] for line in problems(results)}
    parts = [
        "Milliseconds of one forward pass: PyTorch's on the device, ours for a caller who waits\n"
        + times("ms"),
        "Milliseconds from ids in host memory to vectors in host memory, of both\n"
        + times("wall_ms"),
        "Activations, MiB\n"
        + table(results, names, "activation_bytes", lambda b: f"{b / 2**20:.1f}"),
        "Relative error of the pooled vectors against PyTorch in float32\n"
        + table(results, names, "relative_error", "{:.1e}".format, [accuracy_column(bad)]),
    ]
    notes = []
    for result in results:
        for name, entry in result["competitors"].items():
            case = f"{result['batch']} x {result['length']} {name}"
            if "failure" in entry:
                notes.append(f"{case} failed: {entry['failure']}")
            elif "variant" in entry:
                others = [f"{variant} {times['ms']:.3f} ms"
                          for variant, times in entry.get("variants", {}).items()
                          if variant != entry["variant"]]
                notes.append(f"{case}: {', '.join([entry['variant'], *others])}")
    if notes:
        parts.append("Notes\n" + "\n".join(notes))
    return "\n\n".join(parts)


def write_json(path, machine, options, results, names):
    ratios = {f"{a}/{b}": [ratio(r, a, b) for r in results] for a, b in RATIOS}
    ratios |= {f"{a}/{b} wall": [ratio(r, a, b, "wall_ms") for r in results] for a, b in RATIOS}
    with open(path, "w") as f:
        json.dump({"machine": machine, "options": options, "competitors": names,
                   "results": results, "ratios": ratios, "problems": problems(results)},
                  f, indent=1)
        f.write("\n")


# Colour is the model, marker and line the way it is run.
STYLES = {
    "dense-eager": ("#8c8c8c", "s", ":"), "dense-graph": ("#8c8c8c", "o", "--"),
    "dense-compiled": ("#4d4d4d", "D", "-"), "lowrank-eager": ("#7fb3d9", "s", ":"),
    "lowrank-graph": ("#3d85c0", "o", "--"), "lowrank-compiled": ("#1f4e79", "D", "-"),
    "paper": ("#c9a227", "^", "-"), "ours": ("#d1361b", "o", "-"),
}


def plot(path, results, names, title):
    """Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, panels = plt.subplots(1, 2, figsize=(12, 5.4))
    labels = [f"{r['batch']} × {r['length']}" for r in results]
    for axes, field, scale, heading in (
            (panels[0], "ms", 1, "Latency, ms"),
            (panels[1], "activation_bytes", 2**20, "Activation memory, MiB")):
        for name in names:
            points = [(i, value(r, name, field)) for i, r in enumerate(results)]
            points = [(i, v / scale) for i, v in points if v]
            if not points:
                continue
            colour, marker, line = STYLES[name]
            bold = 2.4 if name == "ours" else 1.4
            axes.plot(*zip(*points), color=colour, marker=marker, linestyle=line, linewidth=bold,
                      markersize=6, label=name, zorder=3 if name == "ours" else 2)
            if name == "ours":
                for i, v in points:
                    axes.annotate(f"{v:.3g}", (i, v), (0, -14), textcoords="offset points",
                                  ha="center", fontsize=9, color=colour)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_xticks(range(len(labels)), labels)
        axes.margins(x=0.06, y=0.12)
        axes.set_xlabel("batch × length")
        axes.set_title(heading, loc="left")
        axes.grid(axis="y", which="both", linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    handles, legend = panels[0].get_legend_handles_labels()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(handles, legend, loc="lower center", ncol=len(legend), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06, 1, 0.98))
    figure.savefig(path, dpi=150)
    plt.close(figure)
