"""Every figure, one benchmark after the other: `python -m bench`."""

from bench import auth, batching, grpc, identity, leases, life, placement, remote, rollout, traffic, zeromq

for benchmark in (identity, traffic, grpc, auth, life, leases, placement, zeromq, remote, batching, rollout):
    print(f"\n{(benchmark.__doc__ or '').splitlines()[0]}")
    benchmark.main()
