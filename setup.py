"""The folders at the top of the repository are packages of one namespace, `mindpangu`."""

from setuptools import find_packages, setup

FOLDERS = ("models", "train", "infer", "ascend_kernels", "configs")

packages = find_packages(include=["mindpangu", "mindpangu.*"])
package_dir = {}
for folder in FOLDERS:
    package_dir[f"mindpangu.{folder}"] = folder
    packages += [f"mindpangu.{folder}"] + [f"mindpangu.{folder}.{sub}" for sub in find_packages(folder)]

setup(packages=packages, package_dir=package_dir)
