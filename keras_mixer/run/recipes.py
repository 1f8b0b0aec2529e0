"""Named runs. Each docstring gives the result, the cost and the command."""

from collections.abc import Callable

from keras_mixer.run import fields, suggest
from keras_mixer.run.fields import Config

DEFAULT_RECIPE = "digits"


def digits() -> Config:
    """Handwritten digits, bundled: from scratch in a minute.

    1437 training and 360 test images of 8 x 8 pixels (UCI, by scikit-learn).
    Test accuracy 0.985, mean of 7 seeds (measured: 2 CPU cores, a minute or
    two; see docs/results.md).
    Command: python train.py
    """
    return Config(
        recipe="digits",
        data=fields.DataConfig(name="digits"),
        model=fields.ModelConfig(
            variant="custom",
            patch_size=2,
            num_blocks=4,
            hidden_dim=64,
            tokens_mlp_dim=32,
            channels_mlp_dim=128,
            stoch_depth=0.1,
        ),
        augment=fields.AugmentConfig(policy="pad_crop(1)"),
        train=fields.TrainConfig(
            batch_size=64,
            epochs=100,
            label_smoothing=0.1,
            log_every=100,
            eval_every_epochs=20,
            checkpoint_every_epochs=20,
        ),
        optim=fields.OptimConfig(
            lr=3e-3, schedule="cosine", warmup_epochs=3, weight_decay=0.1
        ),
    )


def cifar10_scratch() -> Config:
    """CIFAR-10 from scratch in half an hour on two CPU cores.

    A Mixer of 4 blocks, 128 wide, on 4 x 4 patches. Test accuracy 0.757, mean
    of 2 seeds (measured: 2 CPU cores, 28 minutes each; see
    docs/results.md).
    Command: python train.py --recipe=cifar10_scratch
    """
    return Config(
        recipe="cifar10_scratch",
        data=fields.DataConfig(name="cifar10"),
        model=fields.ModelConfig(
            variant="custom",
            patch_size=4,
            num_blocks=4,
            hidden_dim=128,
            tokens_mlp_dim=64,
            channels_mlp_dim=256,
        ),
        augment=fields.AugmentConfig(policy="pad_crop(4)|flip"),
        train=fields.TrainConfig(
            batch_size=64,
            epochs=16,
            steps_per_call=50,
            log_every=200,
            eval_every_epochs=6,
            checkpoint_every_epochs=3,
        ),
        optim=fields.OptimConfig(
            lr=2.5e-3, schedule="cosine", warmup_epochs=1, weight_decay=0.1
        ),
    )


def photos() -> Config:
    """A folder of photos, one folder per class, from scratch on a CPU.

    A fifth of the images, chosen by file name, is the test split, unless the
    folder has split folders. ants and bees: see docs/photos.md.
    Command: python train.py --recipe=photos data.name=folder:/path
    (`--recipe=photos` is the default of a folder.)
    """
    return Config(
        recipe="photos",
        data=fields.DataConfig(name="", hold_out=0.2),
        model=fields.ModelConfig(
            variant="custom",
            patch_size=8,
            num_blocks=4,
            hidden_dim=128,
            tokens_mlp_dim=64,
            channels_mlp_dim=256,
            image_size=64,
            stoch_depth=0.1,
        ),
        augment=fields.AugmentConfig(policy="inception_crop|flip"),
        train=fields.TrainConfig(
            batch_size=32,
            epochs=100,
            label_smoothing=0.1,
            log_every=None,
            eval_every_epochs=5,
            checkpoint_every_epochs=20,
        ),
        optim=fields.OptimConfig(
            lr=1e-3, schedule="cosine", warmup_epochs=5, weight_decay=0.1
        ),
    )


def _imagenet(
    recipe: str, variant: str, data: str = "", *, magnitude: int, p: float
) -> Config:
    """Paper, Table 4, ImageNet rows; the rest as big_vision's public config.

    That is configs/mlp_mixer_i1k.py: sigmoid loss with a head bias of -6.9,
    1 % of the training images set apart, centre crops for evaluation.
    """
    return Config(
        recipe=recipe,
        data=fields.DataConfig(
            name=data,
            train_split="train[:99%]",
            val_split="train[99%:]" if data else None,
            eval_split="validation" if data else "train[99%:]",
        ),
        model=fields.ModelConfig(
            variant=variant, image_size=224, stoch_depth=0.1
        ),
        augment=fields.AugmentConfig(
            policy=f"inception_crop|flip|randaugment(2, {magnitude})",
            eval_policy="resize_small(256)|central_crop",
        ),
        mixup=fields.MixupConfig(p=p),
        train=fields.TrainConfig(
            batch_size=4096,
            epochs=300,
            loss="sigmoid",
            head_bias_init=-6.9,
            steps_per_call=50,
            eval_every_epochs=10,
            checkpoint_every=1000,
        ),
        optim=fields.OptimConfig(
            lr=1e-3, weight_decay=0.1, warmup_steps=10_000, schedule="linear"
        ),
    )


def imagenet_b() -> Config:
    """Paper, Table 4: B on ImageNet-1k, 300 epochs. Not run here.

    Top-1: B/16 76.44 (paper, Table 3); 76.3 in 2 h 11 min on a TPU v3-128
    (big_vision), 70.5 in 27 min with train.epochs=60.
    Command: python train.py --recipe=imagenet_b [train.epochs=60]
    """
    return _imagenet("imagenet_b", "B/16", "imagenet2012", magnitude=15, p=0.5)


def imagenet_l() -> Config:
    """Paper, Table 4: L on ImageNet-1k, 300 epochs. Not run here.

    Top-1 (paper, Table 3): L/16 71.76.
    Command: python train.py --recipe=imagenet_l
    """
    return _imagenet("imagenet_l", "L/16", "imagenet2012", magnitude=15, p=0.5)


def imagenet21k_b() -> Config:
    """Paper, Table 4: B on ImageNet-21k, 300 epochs. Not run here.

    ImageNet top-1 after fine-tuning (paper, Table 3): B/16 80.64. TFDS has no
    ImageNet-21k: give a folder with one folder of images per class.
    Command: python train.py --recipe=imagenet21k_b data.name=folder:/path
    """
    return _imagenet("imagenet21k_b", "B/16", magnitude=10, p=0.2)


def imagenet21k_l() -> Config:
    """Paper, Table 4: L on ImageNet-21k, 300 epochs. Not run here.

    ImageNet top-1 after fine-tuning (paper, Table 3): L/16 82.89.
    Command: python train.py --recipe=imagenet21k_l data.name=folder:/path
    """
    return _imagenet("imagenet21k_l", "L/16", magnitude=20, p=0.5)


def _jft300m(recipe: str, *, variant: str, epochs: float, lr: float) -> Config:
    """Paper, Table 4, JFT rows: crop and flip alone, no regularisation."""
    return Config(
        recipe=recipe,
        data=fields.DataConfig(name=""),
        model=fields.ModelConfig(variant=variant, image_size=224),
        augment=fields.AugmentConfig(
            policy="inception_crop|flip",
            eval_policy="resize_small(256)|central_crop",
        ),
        train=fields.TrainConfig(
            batch_size=4096,
            epochs=epochs,
            # The paper does not name the loss. JFT has several labels per
            # image; big_vision pre-trains Mixer so on ImageNet.
            loss="sigmoid",
            head_bias_init=-6.9,
            steps_per_call=50,
            eval_every=10_000,
            checkpoint_every=5_000,
        ),
        optim=fields.OptimConfig(
            lr=lr, weight_decay=0.03, warmup_steps=10_000, schedule="linear"
        ),
    )


def jft300m_s() -> Config:
    """Paper, Table 4: S on JFT-300M, 5 epochs. Not run here.

    ImageNet top-1 after fine-tuning (paper, Table 3): S/32 68.70, S/16 73.83.
    Command: python train.py --recipe=jft300m_s data.name=... \
[model.variant=S/32]
    """
    return _jft300m("jft300m_s", variant="S/16", epochs=5, lr=3e-3)


def jft300m_b() -> Config:
    """Paper, Table 4: B on JFT-300M, 7 epochs. Not run here.

    ImageNet top-1 after fine-tuning (paper, Table 3): B/32 75.53, B/16 80.00.
    Command: python train.py --recipe=jft300m_b data.name=... \
[model.variant=B/32]
    """
    return _jft300m("jft300m_b", variant="B/16", epochs=7, lr=3e-3)


def jft300m_l() -> Config:
    """Paper, Table 4: L on JFT-300M, 7 epochs (or 14). Not run here.

    ImageNet top-1 after fine-tuning (paper, Table 3): L/32 80.67, L/16 84.05.
    Command: python train.py --recipe=jft300m_l data.name=... \
[model.variant=L/32 train.epochs=14]
    """
    return _jft300m("jft300m_l", variant="L/16", epochs=7, lr=1e-3)


def jft300m_h() -> Config:
    """Paper, Table 4: H on JFT-300M, 14 epochs. Not run here.

    ImageNet top-1 after fine-tuning (paper, Table 3): H/14 86.32.
    Command: python train.py --recipe=jft300m_h data.name=...
    """
    return _jft300m("jft300m_h", variant="H/14", epochs=14, lr=1e-3)


def _finetune(recipe: str, *, data: str, steps: int, size: int = 224) -> Config:
    """Paper, sect. 3 and App. A.2: SGD with momentum, no decay, zero head.

    The paper names no augmentation that it kept (mixup and inception crop
    were tried and dropped); flips alone are this project's choice.
    """
    return Config(
        recipe=recipe,
        data=fields.DataConfig(
            name=data,
            eval_split="validation" if data == "imagenet2012" else "test",
        ),
        model=fields.ModelConfig(variant="B/16", image_size=size),
        init=fields.InitConfig(weights="imagenet21k", head="fresh"),
        augment=fields.AugmentConfig(
            policy="resize|flip", eval_policy="resize"
        ),
        train=fields.TrainConfig(
            batch_size=512,
            steps=steps,
            eval_every=max(steps // 5, 100),
            checkpoint_every=500,
        ),
        optim=fields.OptimConfig(
            name="sgd",
            lr=0.03,
            weight_decay=0.0,
            schedule="cosine",
            warmup_steps=min(500, steps // 10),
        ),
    )


def finetune_cifar10() -> Config:
    """CIFAR-10 from ImageNet-21k weights, 10 000 steps. Not run here.

    Reported: B/16 96.82 (google-research/vision_transformer).
    Learning rates that the paper sweeps: 0.003, 0.01, 0.03, 0.06.
    Command: python train.py --recipe=finetune_cifar10 [optim.lr=0.01]
    """
    return _finetune("finetune_cifar10", data="cifar10", steps=10_000)


def finetune_cifar100() -> Config:
    """CIFAR-100 from ImageNet-21k weights, 10 000 steps. Not run here.

    Command: python train.py --recipe=finetune_cifar100
    """
    return _finetune("finetune_cifar100", data="cifar100", steps=10_000)


def finetune_pets() -> Config:
    """Oxford-IIIT Pets from ImageNet-21k weights, 500 steps. Not run here.

    Command: python train.py --recipe=finetune_pets
    """
    return _finetune("finetune_pets", data="oxford_iiit_pet", steps=500)


def finetune_flowers() -> Config:
    """Oxford Flowers 102 from ImageNet-21k weights, 500 steps. Not run here.

    Command: python train.py --recipe=finetune_flowers
    """
    return _finetune("finetune_flowers", data="oxford_flowers102", steps=500)


def finetune_imagenet() -> Config:
    """ImageNet-1k at 224 px from ImageNet-21k weights. Not run here.

    Top-1 (paper, Table 3): B/16 80.64, L/16 82.89.
    Command: python train.py --recipe=finetune_imagenet [model.variant=L/16]
    """
    return _finetune("finetune_imagenet", data="imagenet2012", steps=20_000)


def finetune_imagenet_448() -> Config:
    """ImageNet-1k at 448 px, token mixing expanded (App. C). Not run here.

    Top-1 (paper, Table 2): L/16 84.15.
    Command: python train.py --recipe=finetune_imagenet_448 \
[model.variant=L/16]
    """
    return _finetune(
        "finetune_imagenet_448", data="imagenet2012", steps=20_000, size=448
    )


def finetune_photos() -> Config:
    """A folder of photos from released weights or a run. Not run here.

    From a run (init.weights=<workdir>) the model is that of the run, and so is
    the image size. From released weights it takes a GPU, or patience.
    Command: python train.py --recipe=finetune_photos data.name=folder:/path \
[init.weights=<workdir>]
    """
    return Config(
        recipe="finetune_photos",
        data=fields.DataConfig(name="", hold_out=0.2),
        model=fields.ModelConfig(variant="B/16", image_size=224),
        init=fields.InitConfig(weights="imagenet21k", head="fresh"),
        augment=fields.AugmentConfig(policy="resize|flip"),
        train=fields.TrainConfig(
            batch_size=32,
            epochs=20,
            log_every=None,
            eval_every_epochs=1,
            checkpoint_every_epochs=5,
        ),
        optim=fields.OptimConfig(
            name="sgd",
            lr=0.003,
            weight_decay=0.0,
            schedule="cosine",
            warmup_epochs=1,
        ),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        cifar10_scratch,
        photos,
        imagenet_b,
        imagenet_l,
        imagenet21k_b,
        imagenet21k_l,
        jft300m_s,
        jft300m_b,
        jft300m_l,
        jft300m_h,
        finetune_cifar10,
        finetune_cifar100,
        finetune_pets,
        finetune_flowers,
        finetune_imagenet,
        finetune_imagenet_448,
        finetune_photos,
    )
}


def get_recipe(name: str) -> Config:
    """Returns the config of a recipe.

    Raises:
      ValueError: There is no such recipe; the nearest is named.
    """
    if name in RECIPES:
        return RECIPES[name]()
    raise ValueError(
        f"Unknown recipe {name!r}.{suggest.nearest(name, RECIPES)} Recipes: "
        + ", ".join(RECIPES)
    )
