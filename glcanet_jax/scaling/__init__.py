"""Maps by several processes, of this machine or of a cluster: what ``predict --on ray`` does (docs/scaling.md).

A driver gives jobs (:mod:`glcanet_jax.maps.jobs`) to workers that hold the network; each reads and writes its files itself.
Importing the package, and what a worker needs to begin, imports no JAX.
"""
