"""What makes one parametric person. Lengths in canonical pixels, colours in RGB 0 to 255."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .landmarks import Landmarks, mirrored

# A person's colour is a mixture of two neighbours in a list.
SKINS = np.array([(244, 208, 182), (228, 184, 152), (204, 155, 120), (168, 116, 84), (124, 82, 60), (92, 60, 46)])
HAIRS = np.array([(30, 25, 24), (52, 36, 28), (92, 62, 40), (140, 100, 60), (186, 150, 98), (128, 122, 118)])
IRISES = np.array([(70, 46, 30), (96, 66, 38), (88, 98, 66), (86, 116, 140), (62, 84, 104)])
CLOTHES = np.array([(54, 66, 92), (92, 48, 52), (58, 80, 66), (70, 70, 74), (150, 144, 134), (36, 36, 42)])
BACKDROPS = np.array([(172, 178, 182), (142, 158, 172), (178, 170, 158), (120, 130, 132), (196, 198, 200)])


@dataclass(frozen=True)
class Traits:
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    clothes: np.ndarray
    backdrop: np.ndarray
    face_width: float
    jaw: float
    chin: float
    eye_distance: float
    eye_y: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    brow_y: float
    brow_arch: float
    brow_thickness: float
    nose_y: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip_upper: float
    lip_lower: float
    hairline: float
    parting: float
    long_hair: bool
    beard: float
    light: np.ndarray
    ambient: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Traits:
        def colour(palette: np.ndarray) -> np.ndarray:
            first = rng.integers(len(palette) - 1)
            return palette[first] + (palette[first + 1] - palette[first]) * rng.uniform()

        def vary(mean: float, spread: float) -> float:
            return float(mean + rng.uniform(-spread, spread))

        eye_y = vary(92, 3)
        mouth_y = vary(161, 4)
        feminine = rng.uniform()
        skin = colour(SKINS)
        light = np.array([vary(0, 0.55), vary(-0.45, 0.25), 1.0])
        return cls(
            skin=skin,
            hair=colour(HAIRS if skin[0] > 190 else HAIRS[:3]),
            iris=colour(IRISES if skin[0] > 190 else IRISES[:2]),
            clothes=CLOTHES[rng.integers(len(CLOTHES))] * vary(1, 0.15),
            backdrop=colour(BACKDROPS),
            face_width=vary(72, 5),
            jaw=vary(2.45 - 0.25 * feminine, 0.2),
            chin=vary(209, 5),
            eye_distance=vary(34, 2.5),
            eye_y=eye_y,
            eye_width=vary(14.0, 1.3),
            eye_open=vary(5.4, 0.9),
            eye_tilt=vary(-0.06, 0.08),
            brow_y=eye_y - vary(17, 2),
            brow_arch=vary(4.5, 2),
            brow_thickness=vary(4.2 - 1.4 * feminine, 0.7),
            nose_y=vary(131, 3),
            nose_width=vary(14 - 1.5 * feminine, 1.5),
            mouth_y=mouth_y,
            mouth_width=vary(26, 3),
            lip_upper=vary(5.0, 1.2),
            lip_lower=vary(6.6, 1.3),
            hairline=vary(38, 8),
            parting=vary(0, 30),
            long_hair=bool(feminine > 0.55),
            beard=float(max(0, rng.uniform(-1.2, 0.8))) if feminine < 0.45 else 0.0,
            light=light / np.linalg.norm(light),
            ambient=vary(0.52, 0.08),
        )

    def landmarks(self) -> Landmarks:
        return mirrored(
            {
                "brow_inner": (self.eye_distance - 15, self.brow_y),
                "brow_middle": (self.eye_distance, self.brow_y - self.brow_arch),
                "brow_outer": (self.eye_distance + 15, self.brow_y),
                "lid_upper": (self.eye_distance, self.eye_y - self.eye_open),
                "lid_lower": (self.eye_distance, self.eye_y + 0.7 * self.eye_open),
                "eye": (self.eye_distance, self.eye_y),
                "eye_corner": (self.eye_distance + self.eye_width, self.eye_y),
                "cheek": (self.eye_distance + 8, self.eye_y + 30),
                "nose_wing": (self.nose_width, self.nose_y),
                "lip_corner": (self.mouth_width, self.mouth_y),
                "nose_root": (0, self.eye_y - 4),
                "lip_upper": (0, self.mouth_y - 0.7 * self.lip_upper),
                "lip_lower": (0, self.mouth_y + 0.7 * self.lip_lower),
                "chin": (0, self.chin - 14),
            }
        )
