import jax

# Before any array exists: setting the device count later raises RuntimeError.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
