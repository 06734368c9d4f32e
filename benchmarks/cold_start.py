"""How long until the service answers: from the command to ready, and to the first answer.

python -m benchmarks.cold_start [--times 5]
"""

import time
from pathlib import Path

from benchmarks.lib.measuring import Report, Row, arguments_of, bars, milliseconds, spread
from benchmarks.lib.service import EXPRESSIONS, PICTURE, REPOSITORY, Gateway, form, serve


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    report = Report("cold_start", arguments.out)
    body = form(PICTURE.read_bytes(), EXPRESSIONS[:1], arguments.model)
    rows: list[Row] = []
    for _ in range(arguments.times):
        start = time.perf_counter()
        with serve(arguments.model_repository, REFERENT_DEFAULT_MODEL=arguments.model) as served:
            ready = time.perf_counter() - start
            with Gateway(served.url) as gateway:
                first, second = milliseconds(lambda: gateway(body)), milliseconds(lambda: gateway(body))
        rows.append({"ready s": ready, "first answer ms": first, "second answer ms": second})
    report.add("every start", rows)
    report.add("median and range", [{column: spread([row[column] for row in rows]) for column in rows[0]}])
    seconds = {f"start {number}": row["ready s"] for number, row in enumerate(rows, 1)}
    report.chart(lambda axes: bars(axes, seconds, "s until ready"))


if __name__ == "__main__":
    main()
