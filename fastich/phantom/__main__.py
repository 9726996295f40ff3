"""``python -m fastich.phantom``: make a data set of synthetic studies."""

import json
import sys

from fastich import phantom, verb


def main(argv: list[str]) -> int:
    """Parse the flags, make the data set, print what was made."""
    parser = verb.parser("phantom", "Make synthetic head CT studies with bleeds, labels, masks and true volumes.")
    verb.add_config_flags(parser, phantom.PhantomConfig)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    summary = phantom.generate(verb.config_from_args(args, phantom.PhantomConfig))
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in summary["prevalence"].items())
        counts = f"{summary['studies']} studies of {summary['patients']} patients, {summary['slices']} slices"
        print(f"{summary['out']}: {counts}")
        print(f"{shares}; {summary['slices_per_s']:.0f} slices/s")
    return 0


if __name__ == "__main__":
    verb.run(main, sys.argv[1:])
