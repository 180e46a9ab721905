"""The folders at the top of the repository are the rooms of one package, `mindpangu`."""

from setuptools import find_packages, setup

ROOMS = ("models", "train", "infer", "ascend_kernels", "configs")

packages = find_packages(include=["mindpangu", "mindpangu.*"])
package_dir = {}
for room in ROOMS:
    package_dir[f"mindpangu.{room}"] = room
    packages += [f"mindpangu.{room}"] + [f"mindpangu.{room}.{sub}" for sub in find_packages(room)]

setup(packages=packages, package_dir=package_dir)
