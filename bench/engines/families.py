"""Which engine runs which family: python bench/engines/families.py [--engines transformers4,vllm] [--only qwen3,phi]
[--classes stock,ragged]

Tiny random models of every family (those of tests/family_samples.py, four times as wide), exported in each class,
decode 16 tokens greedily in float32 in each engine; the tokens are compared with the index-gather reference. Prints a
table in Markdown; the engines' output is in logs next to the exports.
"""

import argparse
import sys
from pathlib import Path

import torch
from matrix import TOKENS, cell, environment, version

from grouper import Checkpoint, ExportOptions, export
from grouper.compress import Regrouper
from grouper.export.format import Job
from grouper.export.reference import gathered_reference
from grouper.families.architecture import Architecture
from grouper.merging import MERGES

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from family_samples import EQUAL, RAGGED, SAMPLES, UNEQUAL, layout_for, make

ROWS = {"stock": EQUAL, "padded": UNEQUAL, "ragged": RAGGED}
# Engines need heads of 32 or more.
WIDER = ("hidden_size", "intermediate_size", "n_embd", "d_model", "rotary_dim", "ffn_dim", "word_embed_proj_dim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="transformers,transformers4,vllm")
    parser.add_argument("--only", default=",".join(SAMPLES))
    parser.add_argument("--classes", default=",".join(ROWS))
    parser.add_argument("--work", type=Path, default=Path(".engines"))
    args = parser.parse_args()
    engines = {name: environment(name, args.work) for name in args.engines.split(",")}
    prompt = torch.randint(3, 199, (1, 24), generator=torch.Generator().manual_seed(1))
    options = {
        "max_new_tokens": TOKENS,
        "min_new_tokens": TOKENS,
        "do_sample": False,
        "attention_mask": torch.ones_like(prompt),
    }
    versions = " | ".join(version(e, python) for e, (python, _) in engines.items())
    print(f"| family | export | {versions} |\n|{' --- |' * (len(engines) + 2)}", flush=True)
    for name in args.only.split(","):
        folder = args.work / "families" / name
        if not (folder / "config.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            family, sizes = SAMPLES[name]
            make(
                folder,
                family,
                {
                    **sizes,
                    **{key: 4 * sizes[key] for key in WIDER if key in sizes},
                    **({"head_dim": 32} if "head_dim" in sizes else {}),
                },
            )
        checkpoint = Checkpoint.open(folder)
        plain = Architecture.of(checkpoint.config)
        for deploy in args.classes.split(","):
            layout = layout_for(folder, ROWS[deploy])
            target = args.work / "families" / f"{name}-{deploy}"
            done = export(checkpoint, layout, target, options=ExportOptions(max_padding=9.0, overwrite=True))
            if done.export_class != deploy:  # the family has no export of this class
                continue
            merged = Regrouper(checkpoint).merged(layout, MERGES["mean"])
            with gathered_reference(Job(checkpoint, layout, merged, ExportOptions())) as reference:
                expected = reference.generate(prompt, **options)[0, prompt.shape[1] :].tolist()
            cells = [
                cell(e, python, variables, target, prompt[0].tolist(), expected, args.work)
                for e, (python, variables) in engines.items()
            ]
            print(f"| `{plain.family.model_type}` ({name}) | {done.export_class} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
