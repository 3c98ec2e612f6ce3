"""How Sphinx builds these pages: `make docs`, without network."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import docstring_markup
import public_names
from sphinx.ext.napoleon import GoogleDocstring

import fperr
from fperr.attribution.columns import ATTRIBUTION
from fperr.campaign.jobs import COMMON_KEYS, JOBS
from fperr.campaign.spec import CAMPAIGN_KEYS, MODEL_KEYS
from fperr.campaign.spec_keys import Key
from fperr.report.columns import LAYERS, MEASUREMENT, Column


def dictionary(title: str, columns: tuple[Column, ...]) -> str:
    """A table of columns, in Markdown."""
    rows = [
        f"| `{column.name}` | {column.dtype} | {column.meaning.replace('|', chr(92) + '|')} |"
        for column in columns
    ]
    return "\n".join(
        [f"## {title}", "", "| column | dtype | meaning |", "|---|---|---|", *rows, ""]
    )


def keys(title: str, words: str, table: tuple[Key, ...]) -> str:
    """A table of the keys of a campaign's spec, in Markdown."""
    rows = [
        f"| `{key.name}` | {key.kind.words} | {default(key)} | {key.meaning} |" for key in table
    ]
    return "\n".join(
        [
            f"## {title}", "", words, "",
            "| key | value | by default | meaning |", "|---|---|---|---|",
            *rows, "",
        ]
    )  # fmt: skip


def default(key: Key) -> str:
    """The default of a key, in Markdown."""
    if key.is_required:
        return "must be given"
    if isinstance(key.default, tuple):
        return ", ".join(f"`{value}`" for value in key.default) or "none"
    return "none" if key.default in (None, {}) else f"`{str(key.default).lower()}`"


# the tutorials are the notebooks, which lie outside: copies, as links are lost in archives
tutorials = Path(__file__).parent / "tutorials"
for copy in tutorials.glob("*.ipynb"):
    copy.unlink()
for notebook in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb"):
    shutil.copy(notebook, tutorials)

generated = Path(__file__).parent / "reference" / "generated"
generated.mkdir(exist_ok=True)
(generated / "columns.md").write_text(
    "\n".join(
        [
            dictionary(
                "`Report.frame`: a row for each image, scenario, loss and format", MEASUREMENT
            ),
            dictionary("`LayerReport.frame`: a row for each image and operation", LAYERS),
            dictionary("`Attribution.frame`: a row for each image", ATTRIBUTION),
        ]
    )
)
(generated / "campaign_keys.md").write_text(
    "\n".join(
        [
            keys("The campaign", "At the top of the file, before any table.", CAMPAIGN_KEYS),
            keys("`[[models]]`", "A table for each model.", MODEL_KEYS),
            *(
                keys(
                    f'`[[jobs]]` with `job = "{job.name}"`',
                    f"The job {job.meaning}.",
                    (*COMMON_KEYS, *job.keys),
                )
                for job in JOBS.values()
            ),
        ]
    )
)

project = "fperr"
author = "the fperr developers"
copyright = "the fperr developers, MIT licence"
version = release = fperr.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without network
]
html_theme = "furo"
html_title = f"fperr {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
exclude_patterns = ["_build", "snippets", "reference/generated"]
# notebooks are committed executed, and a test compares their numbers with those of a fresh run
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]  # progress bars' widgets have a text, too
default_role = "py:obj"  # `name` in a docstring: code, and a link where there is such a name
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # a line an attribute, as for parameters
python_display_short_literal_types = True
maximum_signature_line_length = 80
autosummary_generate = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
linkcheck_ignore = [r"https?://.*"]  # the build needs no network; links within are checked by it


def _as_markup(_app, _what, _name, _obj, _options, lines):
    lines[:] = docstring_markup.restructured(lines)


def _after_napoleon(app, what, name, obj, options, lines):
    """Give a constant, which may be imported from elsewhere, the text below its assignment."""
    if what == "data" and name in public_names.public_names():
        text = docstring_markup.restructured(public_names.docstring(name, obj).splitlines())
        # in the text of "data", napoleon would take a first line with a colon for a type
        lines[:] = GoogleDocstring(
            list(text), app.config, app, "module", name, obj, options
        ).lines()
    lines[:] = docstring_markup.with_plain_types(lines)


def setup(app):
    """Connect before and after napoleon, which reads the sections of a docstring."""
    app.connect("autodoc-process-docstring", _as_markup, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)
