"""Every figure, one benchmark after the other: `python -m bench`."""

from bench import auth, grpc, identity, leases, life, placement, zeromq

for benchmark in (identity, grpc, auth, life, leases, placement, zeromq):
    print(f"\n{(benchmark.__doc__ or '').splitlines()[0]}")
    benchmark.main()
