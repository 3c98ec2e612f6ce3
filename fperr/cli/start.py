"""What `fperr` prints without arguments: what people do first, with an example each."""

from fperr.cli.helping import DOCUMENTATION

_TASKS = (
    (
        "Check logits (Python, no network needed): which gradients of a loss are dead or wrong",
        'python -c "import torch; from fperr import bounds; print(bounds.check('
        "torch.tensor([[20., 0, 0]]), torch.tensor([0]), 'float16'))\"",
    ),
    (
        "Measure the gradients of my network",
        "fperr measure my_network.py:build --checkpoint weights.pt --data images.npz",
    ),
    (
        "Use a loss that float32 does not break (PGD on it; fperr.losses has it for Python)",
        "fperr attack fashion_saturated --radius 0.05 --loss tmifpe --n 20 --steps 20",
    ),
    (
        "Explain a gap: how much of an attack's robust accuracy is floating-point error",
        "fperr attribute fashion_saturated --radius 0.05 --n 100 --steps 20",
    ),
)
START = "\n".join(
    [
        "How much of an adversarial-attack result is floating-point error?",
        "",
        *(f"{task}:\n    {example}\n" for task, example in _TASKS),
        "All commands: fperr --help. Options and examples of one: fperr COMMAND --help.",
        "What is installed and found: fperr doctor. Completion in the shell: "
        "fperr --install-completion.",
        f"Documentation: {DOCUMENTATION}.",
    ]
)
