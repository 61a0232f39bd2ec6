"""Images from files, data sets and generators, as uint8 tensors N x C x H x W.

images.py       the image format: conversion to and from float, decoding of files, grids, PNG
label_noise.py  wrong labels of training images, drawn once by a seed
resizing.py     images of several sizes brought to one, by a method that the user names
datasets/       data sets with labels and splits, bundled, public or in a folder of the user
sources/        samples to evaluate: everything that `--images` and `--reference` understand
"""
