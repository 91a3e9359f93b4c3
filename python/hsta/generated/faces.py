"""Paints a parametric face: one seed, one person. A still picture; motion comes from warping it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .landmarks import FRAME, Landmarks
from .painting import blend, blob, pair, smooth_noise, soft_step
from .traits import Traits

SIDE = 2 * FRAME  # everything is painted at this size, so that a person looks the same at every frame size


@dataclass(frozen=True)
class Portrait:
    """A still face: ``texture`` uint8 (448, 448, 3) RGB, ``landmarks`` in the canonical 224 × 224 frame."""

    texture: np.ndarray
    landmarks: Landmarks


def parametric_portrait(rng: np.random.Generator) -> Portrait:
    """Draw a person from ``rng`` and paint the face."""
    traits = Traits.draw(rng)
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / 2
    x, y = np.meshgrid(axis, axis)
    # The face is seldom quite symmetric: bend the canvas a little under the brush.
    x = x + 1.2 * smooth_noise(rng, 4, SIDE)
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = traits.backdrop * (1 + 0.05 * smooth_noise(rng, 3, SIDE) - 0.0008 * (y - 112))[..., None]
    strands = 0.6 * smooth_noise(rng, (14, 220), SIDE) + 0.4 * smooth_noise(rng, (8, 90), SIDE)
    outline = _outline(traits, x, y)
    if traits.long_hair:
        _long_hair(image, traits, x, y, strands)
    _neck(image, traits, x, y)
    _skin(image, traits, x, y, outline, rng)
    _eyes(image, traits, x, y)
    _mouth(image, traits, x, y)
    _brows(image, traits, x, y, rng)
    _hair(image, traits, x, y, outline, strands)
    return Portrait(np.clip(image, 0, 255).astype(np.uint8), traits.landmarks())


def _outline(traits: Traits, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """0 in the middle of the head, 1 on its outline: half an ellipse above, a squarer jaw below."""
    level = 100.0
    above = np.abs((x - 112) / traits.face_width) ** 2.5 + np.abs((y - level) / 112) ** 2.5
    jaw = np.abs((x - 112) / traits.face_width) ** traits.jaw
    jaw += (np.maximum(y - level, 0) / (traits.chin - level)) ** traits.jaw
    return np.where(y < level, above ** (1 / 2.5), jaw ** (1 / traits.jaw))


def _relief(traits: Traits, x: np.ndarray, y: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Height of the face towards the viewer, canonical pixels."""
    t = traits
    z = 58 * np.sqrt(np.clip(1 - outline**2.4, 0, 1))
    z += 3.0 * pair(x, y, t.eye_distance - 4, t.brow_y - 1, 17, 6)
    z -= 5.5 * pair(x, y, t.eye_distance - 3, t.eye_y - 3, 15, 8)
    z += 3.5 * pair(x, y, t.eye_distance, t.eye_y, 10, 6)
    z -= 2.0 * pair(x, y, 15, t.eye_y + 4, 5, 9)
    bridge = np.clip((y - t.brow_y) / (t.nose_y - t.brow_y), 0, 1) * soft_step(y - t.nose_y - 3, 10)
    z += 13 * bridge * np.exp(-0.5 * ((x - 112) / 7.5) ** 2)
    z += 5 * blob(x, y, 112, t.nose_y - 3, 8, 7)
    z += 4.5 * pair(x, y, t.nose_width - 3, t.nose_y, 4.5, 4.5)
    z += 4.5 * pair(x, y, t.eye_distance + 6, t.eye_y + 30, 15, 13)
    # The fold from the wing of the nose to the corner of the mouth.
    along = np.clip((y - t.nose_y) / (t.mouth_y - t.nose_y), -0.2, 1.3)
    fold = np.abs(x - 112) - (t.nose_width + 4 + (t.mouth_width + 3 - t.nose_width) * along)
    z -= 1.1 * np.exp(-0.5 * (fold / 3) ** 2) * soft_step(np.abs(along - 0.55) - 0.6, 0.5)
    z -= 1.2 * blob(x, y, 112, t.nose_y + 13, 2.5, 6)
    z += 2.6 * blob(x, y, 112, t.mouth_y - 3, 17, 4) + 3.2 * blob(x, y, 112, t.mouth_y + 5, 14, 4)
    z -= 2.4 * blob(x, y, 112, t.mouth_y + 14, 13, 3.5)
    return z + 4.5 * blob(x, y, 112, t.chin - 14, 13, 9)


def _lit(traits: Traits, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness factor and sheen of a relief under the person's light (Lambert and Blinn-Phong)."""
    gy, gx = np.gradient(cv2.GaussianBlur(z.astype(np.float32), (0, 0), 2.0), 0.5)
    length = np.sqrt(gx**2 + gy**2 + 1)
    lx, ly, lz = traits.light
    diffuse = np.clip((-gx * lx - gy * ly + lz) / length, 0, 1)
    half = traits.light + np.array([0, 0, 1])
    hx, hy, hz = half / np.linalg.norm(half)
    sheen = np.clip((-gx * hx - gy * hy + hz) / length, 0, 1) ** 24
    return traits.ambient + 0.62 * diffuse, sheen


def _skin(
    image: np.ndarray, traits: Traits, x: np.ndarray, y: np.ndarray, outline: np.ndarray, rng: np.random.Generator
) -> None:
    t = traits
    ears = np.minimum(
        np.hypot((np.abs(x - 112) - t.face_width - 1) / 7, (y - 104) / 17),
        np.hypot((np.abs(x - 112) - t.face_width + 1) / 5, (y - 116) / 12),
    )
    inner = soft_step(np.hypot((np.abs(x - 112) - t.face_width - 3) / 3, (y - 102) / 10) - 1, 0.8)
    ear_colour = t.skin * np.array([0.84, 0.74, 0.70])
    blend(image, ear_colour, soft_step(ears - 1, 0.16))
    blend(image, ear_colour * 0.75, 0.6 * inner * soft_step(ears - 1, 0.16))

    flush = 0.55 * pair(x, y, t.eye_distance + 6, t.eye_y + 32, 14, 12) + 0.45 * blob(x, y, 112, t.nose_y, 9, 8)
    flush += 0.25 * blob(x, y, 112, t.chin - 12, 12, 8)
    albedo = t.skin * (1 + flush[..., None] * np.array([0.03, -0.12, -0.12]))
    mottle = 0.022 * smooth_noise(rng, 24, SIDE) + 0.018 * smooth_noise(rng, 90, SIDE)
    pores = 0.016 * smooth_noise(rng, 224, SIDE)
    albedo = albedo * (1 + mottle + pores)[..., None]
    around_eyes = pair(x, y, t.eye_distance, t.eye_y + 1, 15, 8)
    albedo = albedo * (1 - around_eyes[..., None] * np.array([0.12, 0.17, 0.16]))
    if t.beard:
        stubble = soft_step(-(y - t.nose_y - 6 - 0.006 * (x - 112) ** 2 * (np.abs(x - 112) < 60)), 22)
        stubble = np.maximum(stubble, blob(x, y, 112, t.nose_y + 16, 22, 6))
        stubble *= 1 - blob(x, y, 112, t.mouth_y, t.mouth_width - 4, 7)
        grain = np.clip(0.75 + 0.25 * smooth_noise(rng, 300, SIDE), 0, 1)
        albedo += (t.hair - albedo) * (0.6 * t.beard * stubble * grain)[..., None]
    shade, sheen = _lit(t, _relief(t, x, y, outline))
    lit = albedo * shade[..., None] + 34 * sheen[..., None] * (1 - 0.5 * t.beard * (y > t.nose_y))[..., None]
    blend(image, lit, soft_step(outline - 0.985, 0.03))
    nostrils = pair(x, y, t.nose_width * 0.48, t.nose_y + 4.5, 2.8, 1.6)
    blend(image, t.skin * 0.25, np.clip(1.1 * nostrils, 0, 0.85))
    wings = np.abs(np.hypot((np.abs(x - 112) - t.nose_width + 5) / 6, (y - t.nose_y) / 6) - 1)
    outer = soft_step(-(np.abs(x - 112) - t.nose_width + 3), 4) * soft_step(np.abs(y - t.nose_y - 1) - 6, 5)
    blend(image, t.skin * 0.5, 0.35 * np.exp(-0.5 * (wings / 0.16) ** 2) * outer)


def _neck(image: np.ndarray, traits: Traits, x: np.ndarray, y: np.ndarray) -> None:
    t = traits
    turned = (x - 112) / 46
    neck = t.skin * (0.62 - 0.25 * turned**2 + 0.1 * t.light[0] * turned)[..., None]
    blend(image, neck, soft_step(np.abs(x - 112) - 46 - 0.02 * np.maximum(y - 190, 0) ** 2, 3) * (y > 150))
    collar = 212 + 10 * np.cos(np.clip((x - 112) / 40, -2, 2)) - 0.0006 * (x - 112) ** 2
    blend(image, t.clothes * (0.8 + 0.2 * np.cos((x - 112) / 60))[..., None], soft_step(collar - y, 3))


def _eyes(image: np.ndarray, traits: Traits, x: np.ndarray, y: np.ndarray) -> None:
    t = traits
    side = np.where(x < 112, -1, 1)
    u = side * (x - 112) - t.eye_distance  # outwards from the middle of the eye
    v = y - t.eye_y - t.eye_tilt * u
    s = u / t.eye_width
    arch = np.clip(1 - s**2, 0, None)
    upper, lower = -t.eye_open * arch ** (0.8 - 0.1 * s), 0.7 * t.eye_open * arch
    inside = soft_step(upper - v, 1.2) * soft_step(v - lower, 1.2) * (np.abs(s) < 1)
    white = np.array([228, 222, 218]) * (0.92 - 0.16 * s**2 + 0.03 * (v - upper).clip(-2, 4))[..., None]
    blend(image, white * (0.72 + 0.28 * t.ambient / 0.52), inside)
    gaze = np.hypot(u + 0.5 * side, v + 0.8)
    radius = 5.7
    iris = (
        t.iris * (0.75 + 0.5 * np.clip(gaze / radius, 0, 1) * (v > 0) + 0.12 * np.sin(14 * np.arctan2(v, u)))[..., None]
    )
    blend(image, iris, inside * soft_step(gaze - radius, 1.2))
    blend(image, t.iris * 0.35, inside * np.exp(-0.5 * ((gaze - radius) / 0.7) ** 2) * 0.8)
    blend(image, (14, 11, 10), inside * soft_step(gaze - 2.4, 1.0))
    blend(image, (40, 28, 24), 0.45 * inside * soft_step(v - upper - 2.2, 3.0))  # the lid's shadow
    glint_x, glint_y = 112 + 7 * t.light[0] - 1, t.eye_y - 2.2
    glint = np.hypot(np.abs(x - 112) - t.eye_distance - (glint_x - 112) * side, y - glint_y)
    blend(image, (250, 250, 248), 0.9 * inside * soft_step(glint - 1.1, 0.9))
    within = soft_step(np.abs(s) - 1.02, 0.08)
    lash = np.exp(-0.5 * ((v - upper + 0.4) / (0.9 + 0.35 * np.clip(s, 0, 1))) ** 2)
    blend(image, t.hair * 0.25, 0.85 * lash * within)
    blend(image, t.skin * 0.5, 0.4 * np.exp(-0.5 * ((v - lower - 0.4) / 0.8) ** 2) * within)
    crease = v + t.eye_open * np.clip(1.15 - 0.8 * s**2, 0, None) + 3.2
    blend(image, t.skin * 0.48, 0.5 * np.exp(-0.5 * (crease / 0.9) ** 2) * soft_step(np.abs(s) - 0.95, 0.4))
    bag = v - t.eye_open * np.clip(1.35 - 0.7 * s**2, 0, None) - 1.5
    blend(image, t.skin * 0.6, 0.16 * np.exp(-0.5 * (bag / 1.6) ** 2) * soft_step(np.abs(s) - 0.9, 0.4))
    tear = np.hypot((u + t.eye_width - 1.6) / 1.9, v / 1.5)
    blend(image, (198, 140, 130), 0.7 * soft_step(tear - 1, 0.8))


def _brows(image: np.ndarray, traits: Traits, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> None:
    t = traits
    s = (np.abs(x - 112) - t.eye_distance) / 17  # -1 inner end, 1 outer end
    middle = t.brow_y - t.brow_arch * (1 - (s - 0.15) ** 2) + 1.5 * np.clip(s, 0, None)
    thickness = t.brow_thickness * np.clip(0.85 - 0.45 * s, 0.15, 1)
    edge = np.abs(y - middle) - 0.55 * thickness
    hairs = np.clip(0.85 + 0.16 * smooth_noise(rng, (110, 240), SIDE), 0, 1)
    mask = soft_step(edge, 2.6) * soft_step(np.abs(s) - 1.0, 0.25) * hairs
    blend(image, t.hair * 0.75, 0.88 * mask)


def _mouth(image: np.ndarray, traits: Traits, x: np.ndarray, y: np.ndarray) -> None:
    t = traits
    s = (x - 112) / t.mouth_width
    arch = np.clip(1 - s**2, 0, None)
    line = t.mouth_y + 1.0 * arch - 0.8 * np.exp(-0.5 * (s / 0.15) ** 2)
    bow = 1 - 0.28 * np.exp(-0.5 * (s / 0.14) ** 2)
    top, bottom = line - t.lip_upper * arch**0.8 * bow, line + t.lip_lower * arch**0.6
    red = np.array([0.86, 0.60, 0.58])
    upper = soft_step(top - y, 1.8) * soft_step(y - line, 1.0) * (np.abs(s) < 1)
    lower = soft_step(line - y, 1.0) * soft_step(y - bottom, 2.2) * (np.abs(s) < 1)
    wrinkles = 1 + 0.035 * np.sin(2.1 * (x - 112) + 1.5 * np.sin(0.7 * x))
    level = t.ambient + 0.36
    blend(image, t.skin * red * (0.86 * level * wrinkles)[..., None], 0.85 * upper)
    gloss = 0.10 * np.exp(-0.5 * ((y - line - 0.45 * t.lip_lower) / 1.6) ** 2) * arch
    blend(image, t.skin * red * ((1.02 * level + gloss) * wrinkles)[..., None], 0.8 * lower)
    parting = np.exp(-0.5 * ((y - line) / (0.6 + 0.5 * arch)) ** 2) * soft_step(np.abs(s) - 1.0, 0.12)
    blend(image, t.skin * np.array([0.30, 0.18, 0.17]), 0.85 * parting)
    blend(image, t.skin * 0.5, 0.35 * blob(np.abs(x - 112), y, t.mouth_width + 0.5, t.mouth_y + 0.3, 2.2, 1.8))


def _long_hair(image: np.ndarray, traits: Traits, x: np.ndarray, y: np.ndarray, strands: np.ndarray) -> None:
    width = (traits.face_width + 16 + 5 * np.sin((y - 70) / 45)) * np.clip((y + 40) / 130, 0.01, 1) ** 0.35
    mask = soft_step(np.abs(x - 112) - width - 1.2 * strands, 4)
    blend(image, traits.hair * (0.62 * (1 + 0.18 * strands))[..., None], mask)


def _hair(
    image: np.ndarray, traits: Traits, x: np.ndarray, y: np.ndarray, outline: np.ndarray, strands: np.ndarray
) -> None:
    t = traits
    apart = (x - 112 - t.parting) / t.face_width
    hairline = t.hairline + 7 * np.cos(3 * apart) + 16 * np.abs(apart) ** 2.2 * (1.6 if t.long_hair else 1.0)
    # At the temples the line drops to the ears (or past them, in front of long hair).
    temple = soft_step(0.90 - outline, 0.10)
    reach = 140 if t.long_hair else 92
    hairline = hairline + temple * np.maximum(reach - hairline, 0)
    front = soft_step(y - hairline - 2.0 * strands, 9)
    volume = soft_step(outline - (1.17 if t.long_hair else 1.10), 0.04)
    sides = volume * front
    # A second set of strands, swept away from the parting, over the top of the head.
    sweep = cv2.remap(
        strands.astype(np.float32),
        ((112 + (x - 112) * (1.1 + 0.004 * (112 - y)) + 18 * np.sign(apart) * np.sqrt(np.abs(apart))) * 2).astype(
            np.float32
        ),
        (y * 1.4).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    light = 0.80 + 0.30 * np.exp(-0.5 * ((y - 22 - 10 * t.light[1]) / 14) ** 2) + 0.25 * t.light[0] * (x - 112) / 80
    shadow = soft_step(y - hairline - 9, 12) * soft_step(outline - 0.97, 0.05) * (1 - front)
    blend(image, t.skin * 0.35, 0.38 * shadow)
    blend(image, t.hair * (light * (1 + 0.20 * sweep))[..., None], sides)
