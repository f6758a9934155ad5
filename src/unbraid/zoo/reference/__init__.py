"""Small reference pipelines, trained on the scenes world by the scripts here and shipped in diffusers' own format.

    python -m unbraid.zoo.reference vae --keep runs/reference     # then: sd, clip, sd3; each goes on where it was cut
    python -m unbraid.zoo.reference pack tiny-sd                  # into the package, in half precision
    python -m unbraid.zoo.reference score tiny-sd                 # what the oracle reads in its samples

`tiny-sd` is a `StableDiffusionPipeline` of 64 x 64 images (latents 4 x 16 x 16, v-prediction), `tiny-sd3` a
`StableDiffusion3Pipeline` on the same latents (joint attention, flow matching), `tiny-clip` a `CLIPModel` of the same
images and words. What runs on them runs on the models they stand for, by another name.
"""

SIDE, LATENTS, LENGTH = 64, 4, 40  # of images; channels of latents, a quarter the side; tokens of a prompt
NAMES = ("tiny-sd", "tiny-sd3", "tiny-clip")
