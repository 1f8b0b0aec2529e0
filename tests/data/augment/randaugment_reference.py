"""RandAugment once more, in NumPy, slowly, from the reference's formulas.

google-research/big_vision, pp/autoaugment.py, with tfa.image.transform for
the geometry. Quirks are computed as they come about (uint8 that overflows,
shifts that are clamped), not as the values they lead to.
"""

import numpy as np

F = np.float32
WEIGHTS = (2989, 5870, 1140)  # of tf.image.rgb_to_grayscale, times 10 000


def grey(image: np.ndarray) -> np.ndarray:
    """tf.image.rgb_to_grayscale, in whole numbers: `[height, width, 1]`."""
    weighted = (image.astype(np.int64) * WEIGHTS).sum(-1, keepdims=True)
    # floor(weighted / 10000 / 255 * 255.5)
    return weighted * 511 // (10_000 * 510)


def blend(image1, image2, factor) -> np.ndarray:
    image1, image2 = F(image1), F(image2)
    mixed = image1 + F(factor) * (image2 - image1)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def transform(image: np.ndarray, matrix) -> np.ndarray:
    """tfa.image.transform of the image and a channel of ones, then grey."""
    height, width, _ = image.shape
    a, b, c, d, e, f = map(F, matrix)
    y, x = np.mgrid[:height, :width].astype(F)

    def rounded(values):  # std::round: halves away from 0
        return np.trunc(np.float64(values) + np.copysign(0.5, values))

    column, row = rounded(a * x + b * y + c), rounded(d * x + e * y + f)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    out = np.full_like(image, 128)
    out[inside] = image[row[inside].astype(int), column[inside].astype(int)]
    return out


def rotation(image: np.ndarray, degrees: float) -> tuple:
    """tfa.image.angles_to_projective_transforms."""
    angle = F(degrees) * F(np.pi / 180)
    sine, cosine = np.sin(angle), np.cos(angle)
    height, width = F(image.shape[0] - 1), F(image.shape[1] - 1)
    x = (width - (cosine * width - sine * height)) / F(2)
    y = (height - (sine * width + cosine * height)) / F(2)
    return cosine, -sine, x, sine, cosine, y


def autocontrast(image):
    out = image.copy()
    for channel in range(3):
        values = F(image[..., channel])
        low, high = values.min(), values.max()
        if high > low:
            scale = F(255) / (high - low)
            values = values * scale + -low * scale
            out[..., channel] = np.clip(values, 0, 255).astype(np.uint8)
    return out


def equalize(image):
    out = image.copy()
    for channel in range(3):
        values = image[..., channel]
        counts = np.bincount(values.ravel(), minlength=256)
        step = (values.size - counts[counts > 0][-1]) // 255
        if step:
            table = (np.cumsum(counts) + step // 2) // step
            table = np.clip([0, *table[:-1]], 0, 255)
            out[..., channel] = table[values]
    return out


def posterize(image, bits):
    shift = np.array(8 - bits).astype(np.uint8)  # overflows
    shift = min(int(shift), 7)  # TensorFlow's kernels clamp
    return (image >> shift) << shift


def solarize(image, threshold):
    threshold = np.array(threshold).astype(np.uint8)  # overflows
    return np.where(image < threshold, image, 255 - image)


def solarize_add(image, addition):
    added = np.clip(image.astype(np.int64) + addition, 0, 255)
    return np.where(image < 128, added, image).astype(np.uint8)


def contrast(image, factor):
    counts = np.bincount(grey(image).ravel(), minlength=256)
    mean = np.uint8(np.clip(counts.sum() / 256, 0, 255))
    return blend(np.full_like(image, mean), image, factor)


def smooth(image):
    height, width, _ = image.shape
    out = image.copy()
    if height > 2 and width > 2:
        sums = 4 * image[1:-1, 1:-1].astype(int)
        for y in range(3):
            for x in range(3):
                sums += image[y : height - 2 + y, x : width - 2 + x]
        out[1:-1, 1:-1] = sums // 13
    return out


def cutout(image, half, row, column):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    box = (y - row >= -half) & (y - row < half)
    box &= (x - column >= -half) & (x - column < half)
    return np.where(box[..., None], np.uint8(128), image)


def apply(name: str, image: np.ndarray, magnitude: int, draws) -> np.ndarray:
    """One operation at one magnitude, as the reference's tables say."""
    level = float(magnitude) / 10.0
    sign = 1 if np.floor(draws[0] + 0.5) else -1
    factor = level * 1.8 + 0.1
    shear = F(sign * (level * 0.3))
    pixels = F(sign * (level * 100.0))
    size = image.shape[:2]
    # Ours: the reference draws whole numbers.
    center = [
        int(F(draw) * F(n)) for draw, n in zip(draws[1:], size, strict=True)
    ]
    identity = (1, 0, 0, 0, 1, 0)
    return {
        "AutoContrast": lambda: autocontrast(image),
        "Equalize": lambda: equalize(image),
        "Invert": lambda: 255 - image,
        "Rotate": lambda: transform(
            image, rotation(image, sign * (level * 30.0))
        ),
        "Posterize": lambda: posterize(image, int(level * 4)),
        "Solarize": lambda: solarize(image, int(level * 256)),
        "Color": lambda: blend(grey(image), image, factor),
        "Contrast": lambda: contrast(image, factor),
        "Brightness": lambda: blend(np.zeros_like(image), image, factor),
        "Sharpness": lambda: blend(smooth(image), image, factor),
        "ShearX": lambda: transform(image, (1, shear, 0, *identity[3:])),
        "ShearY": lambda: transform(image, (*identity[:3], shear, 1, 0)),
        # tfa.image.translate by [-pixels, 0] has [1, 0, pixels] as its row.
        "TranslateX": lambda: transform(image, (1, 0, pixels, 0, 1, 0)),
        "TranslateY": lambda: transform(image, (1, 0, 0, 0, 1, pixels)),
        "Cutout": lambda: cutout(image, int(level * 40), *center),
        "SolarizeAdd": lambda: solarize_add(image, int(level * 110)),
    }[name]()
