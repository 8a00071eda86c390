"""The processes that make a comparison's runs.

A comparison has many short runs of one app. With one ``flwr run`` for each, every run
would start a simulation of its own: 20 to 40 s for a SuperLink, Ray and one import of
torch and of the app's data in each of Ray's processes. Sixteen strategies on the digits
train for eight minutes in all, and would wait as long again for these starts. So a
worker process here holds one simulation open and makes run after run in it.

- `pool` hands runs out to workers side by side; `process` is a worker as its parent
  sees it, and `messages` what the two tell each other.
- `worker` is the process: it reads jobs, writes reports, and ends when its parent dies.
- `simulation` holds Flower's engine open. It alone calls ``run_simulation``, which
  Flower deprecates in favour of ``flwr run``; if it is removed, a worker can call
  ``flwr run`` for each job, and the rest stays.
- `run_grid` and `run_client_app` tell the devices which run a message belongs to, and
  keep runs apart.
- `federation` reads how many devices are simulated, and with what resources.
"""
