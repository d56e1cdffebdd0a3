#!/bin/sh
# OpenCV needs far more memory to decode an image than the image has, and scaling while decoding does not always help.
#
# Guess: imdecode of 16 megapixels takes 3 bytes per pixel, the size of its result, and IMREAD_REDUCED_COLOR_8, which
# delivers 1/64 of the pixels, next to nothing.
# Seen (opencv-python-headless 5.0.0.93 and 4.11.0.86, Python 3.11 on Linux x86-64, 2026-12-01), peak of the resident
# memory while decoding 4096x4096 pixels:
#   baseline JPEG, in full     6.1 bytes per pixel; PNG, BMP and WebP 6 to 7
#   baseline JPEG, at 1/8      0.2 bytes per pixel
#   progressive JPEG 4:4:4, in full 9.1 bytes per pixel; at 1/8 still 6.1: libjpeg keeps all coefficients, 2 bytes each,
#                              until the last scan.
# So a file of half a megabyte can take a device to its limit, and whoever bounds memory by width x height x 3 is wrong
# by a factor of two to three.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6
cat >"$work/peak.py" <<'PY'
import sys
import cv2
import numpy as np

def largest():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

data, flag = np.fromfile(sys.argv[1], np.uint8), int(sys.argv[2])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again
before = largest()
image = cv2.imdecode(data, flag)
print(f"{(largest() - before) / 4096**2:.2f}")
PY
cat >"$work/images.py" <<'PY'
import sys
import cv2
import numpy as np

image = np.full((4096, 4096, 3), 90, np.uint8)
image[::7] = 30
full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
cv2.imwrite(f"{sys.argv[1]}/baseline.jpg", image)
cv2.imwrite(f"{sys.argv[1]}/progressive.jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, *full])
print(cv2.IMREAD_COLOR, cv2.IMREAD_REDUCED_COLOR_8)
PY
flags=$("$work/env/bin/python" "$work/images.py" "$work")
failed=0
# expect NAME FILE FLAG LOWEST HIGHEST
expect() {
    found=$("$work/env/bin/python" "$work/peak.py" "$work/$2" "$3")
    echo "$1: $found bytes per pixel (seen before: $4 to $5)"
    awk "BEGIN { exit !($found >= $4 && $found <= $5) }" || failed=1
}
expect "baseline, in full" baseline.jpg "${flags% *}" 5.5 7
expect "baseline, at 1/8" baseline.jpg "${flags#* }" 0 0.6
expect "progressive 4:4:4, in full" progressive.jpg "${flags% *}" 8.5 10
expect "progressive 4:4:4, at 1/8" progressive.jpg "${flags#* }" 5.5 7
exit $failed
