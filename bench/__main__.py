"""Every figure, one benchmark after the other: `python -m bench`."""

from bench import identity, life

for benchmark in (identity, life):
    print(f"\n{(benchmark.__doc__ or '').splitlines()[0]}")
    benchmark.main()
