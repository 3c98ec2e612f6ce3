"""The command line: `fperr measure`, `attack`, `attribute`, `layers`, and the other commands."""

import sys
from typing import Annotated

import typer

from fperr import __version__
from fperr.cli import (
    attack,
    attribute,
    campaign,
    doctor,
    fetch,
    figures,
    layers,
    measure,
    report,
    validate,
    zoo,
)
from fperr.cli.faults import ended
from fperr.cli.helping import DOCUMENTATION, Group, add
from fperr.cli.start import START

app = typer.Typer(
    cls=Group,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=f"Options and examples: fperr COMMAND --help. Documentation: {DOCUMENTATION}.",
)
checks = typer.Typer(
    cls=Group, no_args_is_help=True, help="Check what the bounds assume; try to refute them."
)
campaigns = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Run many networks, jobs and images, on one machine or a cluster; nothing is lost.",
)
add(
    app, "measure", measure.measure_command,
    "fperr measure fashion_standard --n 60",
    "fperr measure net.py:build --checkpoint weights.pt --data images.npz",
    "fperr measure fashion_saturated --losses ce,mifpe --fail-on untrustworthy -q",
)  # fmt: skip
add(
    app, "attack", attack.attack_command,
    "fperr attack fashion_saturated --radius 0.05 --loss stable_ce",
    "fperr attack net.py:build --data images.npz --radius 8/255 --targets next",
    "fperr attack fashion_standard --radius 0.02 --format exact --n 10 --steps 5",
)  # fmt: skip
add(
    app, "attribute", attribute.attribute_command,
    "fperr attribute fashion_saturated --radius 0.05 --n 100 --steps 20",
    "fperr attribute net.py:build --data images.npz --radius 8/255 --exact sample",
    "fperr attribute fashion_standard --radius 0.02 --search restarts --why",
)  # fmt: skip
add(
    app, "layers", layers.layers_command,
    "fperr layers fashion_standard --loss tmifpe --n 4",
    "fperr layers fashion_saturated --loss ce --format float32",
    "fperr layers net.py:build --checkpoint weights.pt --data images.npz",
)  # fmt: skip
add(
    app, "report", report.report_command,
    "fperr report out/fashion_standard/measurements.parquet",
    "fperr report out/build/measurements.parquet --out page.html",
    "fperr report out/build/measurements.parquet -q",
)  # fmt: skip
add(
    app, "figures", figures.figures_command,
    "fperr figures theory",
    "fperr figures phase bound --n 40 --networks fashion_standard",
    "fperr figures all --pictures png,svg",
)  # fmt: skip
add(app, "zoo", zoo.zoo_command, "fperr zoo", "fperr zoo | grep packaged", "fperr zoo | wc -l")
add(
    app, "fetch", fetch.fetch_command,
    "fperr fetch mnist_test",
    "fperr fetch mnist_fastat_pgd mnist_levelsets_eps0.4",
    "fperr fetch mnist_wong_kolter",
)  # fmt: skip
add(
    app, "doctor", doctor.doctor_command,
    "fperr doctor",
    "fperr doctor --json",
    "fperr doctor --json | python -m json.tool",
)  # fmt: skip
add(
    checks, "kernels", validate.kernels_command,
    "fperr validate kernels",
    "fperr validate kernels --stride 1000",
    "fperr validate kernels --device cuda",
)  # fmt: skip
add(
    checks, "bounds", validate.bounds_command,
    "fperr validate bounds --cases 1000",
    "fperr validate bounds --formats float16 --kernel cpu_strided",
    "fperr validate bounds --cases 1000000 --out out/bounds",
)  # fmt: skip
add(
    checks, "assumption", validate.assumption_command,
    "fperr validate assumption fashion_standard",
    "fperr validate assumption fashion_standard fashion_saturated --n 10",
    "fperr validate assumption fashion_standard --out out/lengths",
)  # fmt: skip
app.add_typer(checks, name="validate")
add(
    campaigns, "run", campaign.run_command,
    "fperr campaign run spec.toml --workers 2",
    "fperr campaign run spec.toml --workers 32 --dry-run",
    "fperr campaign run spec.toml --scheduler tcp://127.0.0.1:8786",
)  # fmt: skip
add(
    campaigns, "status", campaign.status_command,
    "fperr campaign status spec.toml",
    "fperr campaign status spec.toml --out out/elsewhere",
    "fperr campaign status spec.toml --allow-code",
)  # fmt: skip
add(
    campaigns, "resume", campaign.resume_command,
    "fperr campaign resume spec.toml --workers 2",
    "fperr campaign resume spec.toml --retry-failed",
    "fperr campaign resume spec.toml --memory 4GB -q",
)  # fmt: skip
add(
    campaigns, "collect", campaign.collect_command,
    "fperr campaign collect spec.toml",
    "fperr campaign collect spec.toml --out out/elsewhere",
    "fperr campaign collect spec.toml -q",
)  # fmt: skip
app.add_typer(campaigns, name="campaign")


def _show_version(is_asked_for: bool) -> None:
    if is_asked_for:
        typer.echo(f"fperr {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="show the version and exit"
        ),
    ] = False,
) -> None:
    """How much of an adversarial-attack result is floating-point error?"""
    del version  # its callback shows it
    if context.invoked_subcommand is None:
        typer.echo(START)


def main() -> None:
    """Run the command line: every error ends with one line on standard error and exit code 2."""
    try:
        app(prog_name="fperr")
    except Exception as fault:  # also one of another library: never a bare traceback
        sys.exit(ended(fault))
