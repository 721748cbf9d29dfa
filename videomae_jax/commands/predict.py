"""The `predict` command: classes of videos of one's own from a fine-tuned run."""

import json
import pathlib

from videomae_jax.commands import arguments
from videomae_jax.commands.arguments import say


def main(argv: list[str]) -> int:
    """Writes the table and the sheet, or goes on with them; 0, or 1 when some videos could not be read. None that could is an error."""
    parser = arguments.Parser("predict", description="The likeliest classes of videos, from the views that the run was tested with: softmax of every "
                              "view, then their mean. A csv, and a picture with a frame of every video (the first 300). The same command "
                              "goes on where it stopped.")
    arguments.add_model(parser)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, folders (searched recursively) or an index of video files (.parquet)")
    parser.add_argument("--out", type=arguments.path, default="predictions.csv", metavar="FILE.csv", help="table to write (default: predictions.csv)")
    parser.add_argument("--sheet", type=arguments.path, default="", metavar="FILE.png",
                        help="contact sheet to write (default: the name of the table, ending in .png)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes a video (default 5, or all where there are fewer)")
    parser.add_argument("--classes", default="", metavar="FILE", help="names of the classes in the order of the head: a JSON list, or one a line")
    options = parser.parse_args(argv)
    from videomae_jax import api, extraction, prediction
    from videomae_jax.errors import UserError

    out = pathlib.Path(options.out)
    if out.suffix != ".csv" or options.top < 1:
        raise UserError(f"--out={options.out} --top={options.top}; allowed are a name that ends in .csv, and 1 and more")
    picture = pathlib.Path(options.sheet) if options.sheet else out.with_suffix(".png")
    if picture.suffix != ".png":
        raise UserError(f"--sheet={options.sheet}; allowed is a file name that ends in .png")
    videos = extraction.find(options.videos)
    model = arguments.model(options)
    if hasattr(model.objective, "judge"):
        say(f"head {model.objective.chosen} of 0 to {model.objective.head.count - 1} answers: the one that the config chooses, else the best by the results "
            "of the run, else the first")
    classes = prediction.names(model, given=listed(pathlib.Path(options.classes)) if options.classes else ())
    top = min(options.top, len(classes))
    weights = api.identity(model, pathlib.Path(options.workdir), best=options.best)
    journal = prediction.Journal(out, settings=prediction.settings(model, weights=weights, classes=classes, top=top))
    if journal.known:
        say(f"goes on behind the {len(journal.known)} videos in {journal.path}")
    answers = prediction.predict(model, videos, classes=classes, top=top, journal=journal, say=say)
    failed = sum(bool(a.error) for a in answers)
    if failed == len(answers):
        if not journal.known:
            journal.close()
        raise UserError(f"none of {failed} videos can be read, and no table is written; first {answers[0].name}: {answers[0].error}")
    with arguments.writing(options.out):
        prediction.table(answers, out, top=top)
        with arguments.writing(str(picture), option="sheet"):
            prediction.sheet(answers, picture)
        journal.close()
    if len(answers) > prediction.SHOWN:
        say(f"{picture} shows the first {prediction.SHOWN} of {len(answers)} videos")
    print(f"{len(answers) - failed} videos of {len(answers)} classified: {out}, {picture}")
    return 1 if failed else 0


def listed(path: pathlib.Path, /) -> tuple[str, ...]:
    """Names from a file, with or without a byte order mark."""
    from videomae_jax.data import merge
    from videomae_jax.errors import UserError

    if path.suffix != ".json":
        return merge.read_lines(str(path))
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"--classes={path} cannot be read ({error})") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(f"--classes={path}: allowed is a JSON list of names, or one name a line")
    return tuple(found)
