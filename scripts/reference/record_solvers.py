"""Records what the public solvers of flow matching make of given predictions.

    record_solvers.py OUT.safetensors

Needs diffusers, torch and safetensors. For each solver and each number of steps from 1 to 8: the sigmas, the timesteps, one random start, one random
prediction a step, and the latents after each step. Names are `SOLVER.N.KIND`. A second shift is recorded for 4 steps (`SOLVER.shift5`).
"""
import sys

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import save_file

FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
SOLVERS = {
    "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
    "unipc": lambda shift: UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "dpm++": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, **FLOW),
}


def main():
    out, generator = {}, torch.Generator().manual_seed(3)
    for name, make in SOLVERS.items():
        for label, steps, shift in [(str(n), n, 3.0) for n in range(1, 9)] + [("shift5", 4, 5.0)]:
            scheduler = make(shift)
            scheduler.set_timesteps(steps)
            x = torch.randn(1, 4, 1, 2, 2, generator=generator)
            flows = torch.randn(steps, *x.shape, generator=generator)
            states = [x]
            for t, flow in zip(scheduler.timesteps, flows):
                states.append(scheduler.step(flow, t, states[-1], return_dict=False)[0])
            kinds = dict(sigmas=scheduler.sigmas.float(), timesteps=scheduler.timesteps.float(), flows=flows, latents=torch.stack(states))
            out |= {f"{name}.{label}.{kind}": v.contiguous() for kind, v in kinds.items()}
    save_file(out, sys.argv[1])


if __name__ == "__main__":
    main()
