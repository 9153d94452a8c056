"""The compiled kernel; everything else about the package is in pyproject.toml. Without a compiler the numpy kernel is used."""

from setuptools import Extension, setup

kernel = Extension("zo._kernel", ["zo/_kernel.c"], extra_compile_args=["-O3"], py_limited_api=True, optional=True)
setup(ext_modules=[kernel], options={"bdist_wheel": {"py_limited_api": "cp311"}})
