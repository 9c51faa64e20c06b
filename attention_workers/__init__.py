"""An attention worker: sequences, scheduler, latent cache, model, sampler, engine."""
