"""Training runs: made by `train`, read by `folder`. Lightning's Trainer is the engine.

A run is a folder:

    config.yaml          every setting                      model.safetensors    final weights
    data.json            classes, input shape, mean, std    result.json          what it reached
    logs/csv, logs/tensorboard                              filmstrip.npz        theta of a few images after each epoch
    checkpoints/last.ckpt, checkpoints/best.ckpt            mistakes.json        test images that it gets wrong
                                                            report.html, figures/

Many runs are made by `sweep`, each in a process of its own.
"""
