from benchmarks.soak import growth


def test_memory_that_grows_late_is_told_from_that_of_the_start() -> None:
    sizes = {0: (50, 100), 400: (100, 100), 500: (100, 100), 1000: (100, 110)}
    samples = [
        {"requests": requests, "program": program, "resident MB": size}
        for requests, both in sizes.items()
        for program, size in zip(("early", "late"), both, strict=True)
    ]
    grew = growth(samples, requests=1000)
    assert {program: round(percent) for program, percent in grew.items()} == {"early": 0, "late": 10}
