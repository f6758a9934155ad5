"""Small reference pipelines, trained on the scenes world by the scripts here and shipped in diffusers' own format.

    python -m unbraid.zoo.reference vae --keep runs/reference     # then: sd, clip; each goes on where it was cut off

`tiny-sd` is a `StableDiffusionPipeline` of 64 x 64 images (latents 4 x 16 x 16, v-prediction), `tiny-clip` a
`CLIPModel` of the same images and words. What runs on them runs on the models they stand for, by another name.
"""

SIDE, LATENTS, LENGTH = 64, 4, 40  # of images; channels of latents, a quarter the side; tokens of a prompt
