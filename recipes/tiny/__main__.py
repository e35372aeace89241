"""The whole recipe: views and teachers' features, training, figures, and with them the package and its card.

python -m recipes.tiny --work build/tiny

With --quick, a few steps on few pictures, to see that it runs; nothing is packaged.
"""

import argparse
import os
from pathlib import Path

from recipes.tiny import distill, evaluate, package, prepare


def main(argv: list[str] | None = None) -> None:
    """Run every stage; what was killed goes on with the same command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("LIKEWISE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, required=True, help="folder of the cache and the run")
    parser.add_argument("--minutes", default="85", help="of training")
    parser.add_argument("--workers", default="2", help="processes of one thread each")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    shared, cache, run = ["--shared", str(args.shared)], args.work / "cache", args.work / "run"
    figures, weights = run / "figures.json", run / "likewise-tiny.safetensors"
    training = ["--cache", str(cache), "--run", str(run), "--lr", "3e-3", "--small-until", "0.6"]
    measuring = [*shared, "--weights", str(weights), "--json", str(figures)]
    if args.quick:
        few = ["--pictures", "8", "--chunk", "4", "--workers", "1", "--eager"]
        prepare.main([*shared, "--cache", str(cache), *few])
        distill.main([*training, "--steps", "4", "--batch", "16"])
        networks = ["--networks", "student", "--sets", "signdigits10", "--episodes", "20"]
        evaluate.main([*measuring, *networks])
        return
    prepare.main([*shared, "--cache", str(cache), "--workers", args.workers])
    distill.main([*training, "--minutes", args.minutes, "--workers", args.workers])
    evaluate.main(measuring)
    package.main(["--run", str(run), "--figures", str(figures)])


if __name__ == "__main__":
    main()
