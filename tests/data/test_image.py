"""Images come back from files as they went in, in the right place."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation
from PIL import Image as Pillow
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from scotoma.data.formats.nifti import NiftiHeader
from scotoma.data.grid import Grid
from scotoma.data.image import (
    Image,
    mask_extension,
    probabilities_extension,
    read_grid,
    read_image,
    read_mask,
    read_probabilities,
    write_image,
    write_mask,
    write_probabilities,
)
from scotoma.errors import InputError

RNG = np.random.default_rng(0)
PATIENT = "Doe^Jane"


def volume(shape=(5, 6, 7), dtype=np.float32):
    return (RNG.random(shape) * 100).astype(dtype)


def all_orientations():
    """The 48 ways to name three axes."""
    for order in itertools.permutations(("RL", "AP", "SI")):
        for signs in itertools.product((0, 1), repeat=3):
            yield "".join(pair[s] for pair, s in zip(order, signs, strict=True))


def oblique(angles=(0.2, -0.1, 0.3), spacing=(0.7, 1.3, 4.0), origin=(-31.0, 12.5, 7.25)):
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rx @ ry @ rz * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def geometry_fields(path):
    header = nib.load(path).header
    names = ["qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"]
    names += ["qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units", "pixdim"]
    return {n: np.array(header[n]).tolist() for n in names}


# --- NIfTI ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", list(all_orientations()))
def test_every_orientation_round_trips(tmp_path, codes):
    ornt = axcodes2ornt(codes)
    affine = oblique() @ inv_ornt_aff(ornt, (5, 6, 7))
    nib.save(nib.Nifti1Image(volume(), affine), tmp_path / "a.nii.gz")
    image = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.grid.affine, affine, atol=1e-4)
    assert (io_orientation(image.grid.affine) == io_orientation(affine)).all()
    raw = RNG.integers(0, 4, (5, 6, 7))
    write_mask(tmp_path / "m.nii.gz", raw, image)
    back = nib.load(tmp_path / "m.nii.gz")
    assert (np.asarray(back.dataobj) == raw).all()
    assert geometry_fields(tmp_path / "m.nii.gz") == geometry_fields(tmp_path / "a.nii.gz")
    assert (back.affine == nib.load(tmp_path / "a.nii.gz").affine).all()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.floats(-1.5, 1.5)] * 3),
    st.tuples(*[st.floats(0.1, 8.0)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from([".nii", ".nii.gz", ".mha", ".nrrd"]),
)
def test_oblique_grids_round_trip_in_every_volume_format(
    tmp_path_factory, angles, spacing, origin, shape, end
):
    folder = tmp_path_factory.mktemp("oblique")
    grid = Grid(shape, oblique(angles, spacing, origin))
    array = volume((1, *shape))
    write_image(folder / f"a{end}", array, Image(array, grid))
    image = read_image(folder / f"a{end}")
    assert image.array.shape == (1, *shape)
    np.testing.assert_array_equal(image.array, array)
    assert image.grid.difference(grid, 1e-3) is None
    raw = RNG.integers(0, 3, shape)
    write_mask(folder / f"m{end}", raw, image)
    mask = read_mask(folder / f"m{end}")
    np.testing.assert_array_equal(mask.array, raw)
    np.testing.assert_allclose(mask.grid.affine, image.grid.affine, rtol=1e-12, atol=1e-10)  # NRRD multiplies
    assert read_grid(folder / f"m{end}").difference(mask.grid, 0) is None


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 2), (1, 4), (3, 3)])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_codes_and_units_are_kept(tmp_path, qform, sform, version):
    image = version(volume(), None)
    image.header.set_zooms((0.5, 1.0, 2.0))
    image.set_qform(oblique() if qform else None, qform)
    image.set_sform(oblique() if sform else None, sform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = PATIENT.encode()
    nib.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(read.grid.affine, nib.load(tmp_path / "a.nii").affine)
    write_mask(tmp_path / "m.nii", np.ones((5, 6, 7), int), read)
    assert geometry_fields(tmp_path / "m.nii") == geometry_fields(tmp_path / "a.nii")
    assert type(nib.load(tmp_path / "m.nii")) is version
    assert PATIENT.encode() not in (tmp_path / "m.nii").read_bytes()


def test_the_same_mask_makes_the_same_file_whenever_it_is_written(tmp_path, monkeypatch):
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    like = Image(
        mask[None].astype(np.float32), Grid.of_spacing(mask.shape, (1.0, 1.0, 1.0)), tmp_path / "i.nii"
    )
    for name, now in (("a", 1e9), ("b", 2e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_mask(tmp_path / f"{name}.nii.gz", mask, like)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_nifti_units_other_than_millimetres(tmp_path):
    image = nib.Nifti1Image(volume(), np.diag([500, 500, 1000, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii")
    assert read.grid.spacing == (0.5, 0.5, 1.0)
    write_mask(tmp_path / "m.nii", np.ones((5, 6, 7), int), read)
    assert read_mask(tmp_path / "m.nii").grid.spacing == (0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 6), (1, 5, 6, 1)),
        ((5, 6, 1), (1, 5, 6, 1)),
        ((5, 6, 7), (1, 5, 6, 7)),
        ((5, 6, 7, 3), (3, 5, 6, 7)),
        ((5, 6, 1, 2), (2, 5, 6, 1)),
        ((5, 6, 7, 1, 2), (2, 5, 6, 7)),
    ],
)
def test_nifti_dimensions(tmp_path, shape, expected):
    data = volume(shape)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    image = read_image(tmp_path / "a.nii.gz")
    assert image.array.shape == expected
    assert image.array.dtype == np.float32
    assert image.array.flags.c_contiguous
    if len(shape) == 4:
        np.testing.assert_array_equal(image.array[1], data[..., 1])
    raw = np.zeros(expected[1:], int)
    write_mask(tmp_path / "m.nii.gz", raw, image)
    assert nib.load(tmp_path / "m.nii.gz").shape == (shape if len(shape) < 4 else shape[:3])


def test_nifti_rescaling_rgb_and_integer_types(tmp_path):
    stored = nib.Nifti1Image(RNG.integers(0, 100, (3, 4, 5)).astype(np.int16), np.eye(4))
    stored.header.set_slope_inter(2.0, -1000)
    nib.save(stored, tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(
        read_image(tmp_path / "ct.nii.gz").array[0], nib.load(tmp_path / "ct.nii.gz").get_fdata()
    )
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"] = 7
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii.gz")
    assert read_image(tmp_path / "rgb.nii.gz").array[:, 0, 0, 0].tolist() == [0, 7, 0]
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float64):
        nib.save(nib.Nifti1Image(volume(dtype=dtype), np.eye(4)), tmp_path / "a.nii")
        assert read_image(tmp_path / "a.nii").array.dtype == np.float32


def test_a_header_without_size_is_refused(tmp_path):
    image = nib.Nifti1Image(volume(), np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 0, 0
    header = nib.Nifti1Header()
    header.set_data_shape((5, 6, 7))
    header.set_data_dtype(np.float32)
    header["sform_code"] = 1
    with (tmp_path / "a.nii").open("wb") as file:
        header["magic"], header["vox_offset"] = b"n+1", 352
        file.write(header.binaryblock + b"\0" * 4 + volume().tobytes())
    with pytest.raises(InputError, match=r"a\.nii: the header states no usable voxel size"):
        read_image(tmp_path / "a.nii")


# --- MetaImage and NRRD --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".mha", ".mhd", ".nrrd"])
def test_itk_formats_equal_nibabels_view(tmp_path, end):
    image = sitk.GetImageFromArray(volume((7, 6, 5)))
    image.SetSpacing((0.7, 1.3, 4.0))
    image.SetOrigin((10.0, -20.0, 30.5))
    rotation = oblique(spacing=(1, 1, 1))[:3, :3]
    image.SetDirection(rotation.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"a{end}"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    ours, nibabels = read_image(tmp_path / f"a{end}"), nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(ours.array[0], nibabels.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(ours.grid.affine, nibabels.affine, atol=1e-4)
    raw = RNG.integers(0, 300, (5, 6, 7))
    write_mask(tmp_path / f"m{end}", raw, ours)
    back = sitk.ReadImage(str(tmp_path / f"m{end}"))
    assert back.GetSpacing() == pytest.approx(image.GetSpacing(), rel=1e-12)
    assert back.GetOrigin() == image.GetOrigin()
    assert back.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-12)
    np.testing.assert_array_equal(read_mask(tmp_path / f"m{end}").array, raw)
    assert not list(tmp_path.glob(".writing*"))


def test_itk_channels_and_two_dimensions(tmp_path):
    vector = sitk.GetImageFromArray(volume((7, 6, 5, 2)), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "v.mha"))
    assert read_image(tmp_path / "v.mha").array.shape == (2, 5, 6, 7)
    series = sitk.GetImageFromArray(volume((3, 7, 6, 5)), isVector=False)
    sitk.WriteImage(series, str(tmp_path / "t.nrrd"))
    image = read_image(tmp_path / "t.nrrd")
    assert image.array.shape == (3, 5, 6, 7)
    write_mask(tmp_path / "tm.nrrd", np.ones((5, 6, 7), int), image)
    assert sitk.ReadImage(str(tmp_path / "tm.nrrd")).GetDimension() == 3
    flat = sitk.GetImageFromArray(volume((6, 5)))
    flat.SetSpacing((0.25, 0.5))
    sitk.WriteImage(flat, str(tmp_path / "f.mha"))
    image = read_image(tmp_path / "f.mha")
    assert image.array.shape == (1, 5, 6, 1)
    write_mask(tmp_path / "fm.mha", np.ones((5, 6, 1), int), image)
    assert sitk.ReadImage(str(tmp_path / "fm.mha")).GetSpacing() == (0.25, 0.5)


def test_a_header_cannot_point_out_of_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))
    inner = tmp_path / "data"
    inner.mkdir()
    text = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {}\n"
    (inner / "a.mhd").write_text("ObjectType = Image\n" + text.format("../secret"))
    with pytest.raises(InputError, match="outside its folder"):
        read_image(inner / "a.mhd")
    (inner / "b.raw").write_bytes(bytes(8))
    (inner / "b.mhd").write_text("ObjectType = Image\n" + text.format("b.raw"))
    assert read_image(inner / "b.mhd").array.shape == (1, 2, 2, 2)
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: ../secret\n\n"
    (inner / "c.nhdr").write_text(nrrd)
    with pytest.raises(InputError, match="outside its folder"):
        read_image(inner / "c.nhdr")


# --- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".png", ".bmp", ".tif"])
def test_colour_pictures_are_rows_and_columns(tmp_path, end):
    rgb = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Pillow.fromarray(rgb).save(tmp_path / f"a{end}")
    image = read_image(tmp_path / f"a{end}")
    np.testing.assert_array_equal(image.array, np.moveaxis(rgb, -1, 0))
    assert image.grid.shape == (4, 6) == read_grid(tmp_path / f"a{end}").shape
    assert image.grid.unit == "px"
    raw = RNG.integers(0, 3, (4, 6))
    target = tmp_path / f"m{mask_extension(tmp_path / f'a{end}')}"
    write_mask(target, raw, image)
    np.testing.assert_array_equal(read_mask(target).array, raw)


def test_kinds_of_pictures(tmp_path):
    def channels(picture, name="a.png", **options):
        picture.save(tmp_path / name, **options)
        return read_image(tmp_path / name).array

    grey = Pillow.fromarray(RNG.integers(0, 256, (4, 6)).astype(np.uint8))
    deep = RNG.integers(0, 65536, (4, 6)).astype(np.uint16)
    assert channels(grey).shape == (1, 4, 6)
    np.testing.assert_array_equal(channels(Pillow.fromarray(deep))[0], deep)
    rgba = Pillow.fromarray(RNG.integers(0, 256, (4, 6, 4)).astype(np.uint8), "RGBA")
    np.testing.assert_array_equal(channels(rgba), np.moveaxis(np.array(rgba)[..., :3], -1, 0))
    assert channels(grey.convert("LA")).shape == (1, 4, 6)
    assert channels(rgba.convert("RGB").convert("CMYK"), "a.jpg").shape == (3, 4, 6)
    palette = rgba.convert("RGB").quantize(8)
    np.testing.assert_array_equal(channels(palette), np.moveaxis(np.array(palette.convert("RGB")), -1, 0))
    np.testing.assert_array_equal(
        channels(palette, "p.tif"), np.moveaxis(np.array(palette.convert("RGB")), -1, 0)
    )
    np.testing.assert_array_equal(channels(rgba, "lzw.tif", compression="tiff_lzw"), channels(rgba))
    assert channels(grey.convert("1")).max() <= 1


def test_exif_orientation_is_applied(tmp_path):
    picture = Pillow.fromarray(RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8))
    exif = Pillow.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture.save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.grid.shape == (6, 4) == read_grid(tmp_path / "a.jpg").shape


def test_masks_of_every_making(tmp_path):
    raw = RNG.integers(0, 4, (4, 6)).astype(np.uint8)

    def values(name):
        return read_mask(tmp_path / name).array

    Pillow.fromarray(np.stack([raw] * 3, -1)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(values("rgb.png"), raw)
    indexed = Pillow.fromarray(raw, "P")
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    indexed.save(tmp_path / "p.png")
    np.testing.assert_array_equal(values("p.png"), raw)
    ids = raw.astype(np.uint16) + 300
    Pillow.fromarray(ids).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(values("ids.png"), ids)
    tifffile.imwrite(tmp_path / "f.tif", raw.astype(np.float32))
    assert values("f.tif").dtype == np.uint8
    nib.save(nib.Nifti1Image(raw[..., None].astype(np.float64), np.eye(4)), tmp_path / "f.nii.gz")
    np.testing.assert_array_equal(values("f.nii.gz")[..., 0], raw)
    nib.save(nib.Nifti1Image(raw[..., None].astype(np.float32) - 1, np.eye(4)), tmp_path / "n.nii.gz")
    assert values("n.nii.gz").min() == -1
    Pillow.fromarray(RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(InputError, match="colour picture is no mask"):
        values("c.png")
    for wrong, message in [(0.5, "not whole numbers"), (np.nan, "NaN")]:
        bad = raw[..., None].astype(np.float32)
        bad[0, 0] = wrong
        nib.save(nib.Nifti1Image(bad, np.eye(4)), tmp_path / "bad.nii.gz")
        with pytest.raises(InputError, match=rf"bad\.nii\.gz: .*{message}"):
            values("bad.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), np.eye(4)), tmp_path / "two.nii.gz")
    with pytest.raises(InputError, match="a mask needs one channel"):
        values("two.nii.gz")


def test_what_a_png_cannot_hold(tmp_path):
    like = Image(np.zeros((1, 2, 2), np.float32), Grid.of_spacing((2, 2), (1, 1), "px"))
    write_mask(tmp_path / "a.png", np.full((2, 2), 65535), like)
    with pytest.raises(InputError, match="PNG holds whole numbers"):
        write_mask(tmp_path / "a.png", np.full((2, 2), -1), like)
    assert read_mask(tmp_path / "a.png").array.max() == 65535, "a failed write leaves the old file"
    with pytest.raises(InputError, match="shape"):
        write_mask(tmp_path / "a.png", np.zeros((2, 3), int), like)
    with pytest.raises(InputError, match="not written"):
        write_mask(tmp_path / "a.jpg", np.zeros((2, 2), int), like)


# --- TIFF ----------------------------------------------------------------------------------------------


def test_tiff_pages(tmp_path):
    stack = volume((7, 6, 5))
    tifffile.imwrite(tmp_path / "v.tif", stack)
    image = read_image(tmp_path / "v.tif")
    np.testing.assert_array_equal(image.array[0], stack.transpose(2, 1, 0))
    assert image.grid.unit == "px"
    tifffile.imwrite(tmp_path / "c.tif", stack[:3], photometric="minisblack")
    assert read_image(tmp_path / "c.tif").array.shape == (3, 6, 5)
    tifffile.imwrite(
        tmp_path / "ij.tif", stack[:3], imagej=True, resolution=(4.0, 2.0),
        metadata={"axes": "ZYX", "unit": "um", "spacing": 3.0},
    )  # fmt: skip
    image = read_image(tmp_path / "ij.tif")
    assert image.array.shape == (1, 5, 6, 3)
    np.testing.assert_allclose(image.grid.spacing, (0.25e-3, 0.5e-3, 3e-3))
    write_mask(tmp_path / "ijm.tif", np.ones((5, 6, 3), int), image)
    assert read_mask(tmp_path / "ijm.tif").grid.difference(image.grid, 1e-6) is None
    ome = {"axes": "ZYX"}
    for axis, size in zip("XYZ", (1.5, 2.5, 3.5), strict=True):
        ome |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "mm"}
    tifffile.imwrite(tmp_path / "ome.ome.tif", stack, metadata=ome)
    assert read_image(tmp_path / "ome.ome.tif").grid.spacing == (1.5, 2.5, 3.5)
    tifffile.imwrite(tmp_path / "t.tif", stack, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(InputError, match="series in time"):
        read_image(tmp_path / "t.tif")


def test_tiff_volume_lies_as_itk_places_it(tmp_path):
    stack = volume((7, 6, 5))
    tifffile.imwrite(tmp_path / "v.tif", stack)
    sitk.WriteImage(sitk.GetImageFromArray(stack), str(tmp_path / "v.mha"))
    tiff, mha = read_image(tmp_path / "v.tif"), read_image(tmp_path / "v.mha")
    np.testing.assert_array_equal(tiff.array, mha.array)
    np.testing.assert_array_equal(tiff.grid.affine, mha.grid.affine)


# --- channels ------------------------------------------------------------------------------------------


def test_channels_in_files_of_their_own(tmp_path):
    affine = oblique()
    a, b = volume(), volume()
    nib.save(nib.Nifti1Image(a, affine), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(b, affine), tmp_path / "b.nii.gz")
    image = read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])
    np.testing.assert_array_equal(image.array, np.stack([a, b]))
    assert image.array.flags.c_contiguous
    nib.save(
        nib.Nifti1Image(b, affine + np.diag([0.1, 0, 0, 0])),
        tmp_path / "c.nii.gz",
    )
    with pytest.raises(InputError, match=r"c\.nii\.gz: not on the grid of a\.nii\.gz \(spacing"):
        read_image([tmp_path / "a.nii.gz", tmp_path / "c.nii.gz"])


@pytest.mark.parametrize("codes", ["LPS", "ASR", "IPL", "SAR"])
def test_a_channel_in_another_order_of_axes_is_turned(tmp_path, codes):
    first = nib.Nifti1Image(volume(), oblique())
    nib.save(first, tmp_path / "a.nii.gz")
    turned = first.as_reoriented(
        nib.orientations.ornt_transform(io_orientation(first.affine), axcodes2ornt(codes))
    )
    nib.save(turned, tmp_path / "b.nii.gz")
    image = read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])
    np.testing.assert_array_equal(image.array[1], image.array[0])


# --- DICOM ---------------------------------------------------------------------------------------------


def write_series(folder: Path, array, affine_lps, uid=None, slopes=None, prefix="", colour=False, skip=()):
    """array (x, y, z); slices are named in a shuffled order."""
    folder.mkdir(exist_ok=True)
    uid = uid or generate_uid()
    n = array.shape[2]
    step = np.linalg.norm(affine_lps[:3, :3], axis=0)
    names = RNG.permutation(n)
    for z in range(n):
        if z in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        d.PatientName, d.PatientID, d.SeriesDescription = PATIENT, "4711", PATIENT
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        d.SeriesInstanceUID, d.Modality = uid, "CT"
        plane = array[:, :, z]
        d.Columns, d.Rows = plane.shape[:2]
        d.PixelSpacing = [float(step[1]), float(step[0])]
        d.SliceThickness = float(step[2])
        d.ImageOrientationPatient = [*(affine_lps[:3, 0] / step[0]), *(affine_lps[:3, 1] / step[1])]
        d.ImagePositionPatient = (affine_lps @ [0, 0, z, 1])[:3].tolist()
        d.BitsAllocated = d.BitsStored = 8 if colour else 16
        d.HighBit, d.PixelRepresentation = d.BitsStored - 1, 0 if colour else 1
        d.SamplesPerPixel, d.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
        if colour:
            d.PlanarConfiguration = 0
        else:
            d.RescaleSlope, d.RescaleIntercept = (slopes[z] if slopes else 1), -1024
        d.PixelData = plane.swapaxes(0, 1).astype(np.uint8 if colour else np.int16).tobytes()
        d.save_as(folder / f"{prefix}{names[z]:03d}.dcm", enforce_file_format=True)
    return uid


def lps(affine):
    return np.diag([-1, -1, 1, 1]) @ affine


def test_dicom_series_is_sorted_rescaled_and_placed(tmp_path):
    stored = RNG.integers(0, 2000, (5, 6, 7))
    slopes = [1.0, 0.5, 2.0, 1.5, 1.0, 0.25, 1.0]
    # Round numbers, since DICOM writes decimals as text.
    affine = np.array([[0, 0, 2.0, -20], [-0.5, 0, 0, 30], [0, -0.75, 0, 40], [0, 0, 0, 1]])
    write_series(tmp_path / "s", stored, lps(affine), slopes=slopes)
    (tmp_path / "s" / "notes.txt").write_text("not an image")
    image = read_image(tmp_path / "s")
    np.testing.assert_allclose(image.array[0], stored * np.array(slopes) - 1024)
    np.testing.assert_allclose(image.grid.affine, affine, atol=1e-6)
    assert read_grid(tmp_path / "s").difference(image.grid, 0) is None
    assert mask_extension(tmp_path / "s") == ".nii.gz"
    write_mask(tmp_path / "m.nii.gz", np.ones((5, 6, 7), int), image)
    np.testing.assert_allclose(nib.load(tmp_path / "m.nii.gz").affine, affine, atol=1e-5)
    assert PATIENT.encode() not in gzip.decompress((tmp_path / "m.nii.gz").read_bytes())


def test_oblique_dicom_agrees_with_itk(tmp_path):
    affine = lps(oblique(spacing=(0.5, 0.5, 3.0)))
    write_series(tmp_path / "s", RNG.integers(0, 100, (5, 6, 7)), affine)
    image = read_image(tmp_path / "s")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    itk = reader.Execute()
    sitk.WriteImage(itk, str(tmp_path / "itk.nii.gz"))
    other = nib.load(tmp_path / "itk.nii.gz")
    assert Grid((5, 6, 7), other.affine).difference(image.grid, 1e-2) is None
    np.testing.assert_array_equal(image.array[0], other.get_fdata())


def test_colour_dicom_and_single_slices(tmp_path):
    rgb = RNG.integers(0, 256, (5, 6, 2, 3))
    write_series(tmp_path / "rgb", rgb, np.eye(4), colour=True)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb").array, np.moveaxis(rgb, -1, 0))
    write_series(tmp_path / "one", rgb[..., :1, 0], np.diag([1, 1, 5, 1]))
    image = read_image(tmp_path / "one")
    assert image.array.shape == (1, 5, 6, 1)
    assert image.grid.spacing == (1, 1, 5)
    single = next((tmp_path / "one").iterdir())
    np.testing.assert_array_equal(read_image(single).array, image.array)


def faulty_series(kind, folder):
    data = RNG.integers(0, 100, (5, 6, 7))
    if kind == "two series":
        write_series(folder, data, np.eye(4), prefix="a")
        write_series(folder, data, np.eye(4), prefix="b")
        return r"holds 2 series \(7 file\(s\) starting with a000\.dcm, 7 file\(s\) starting with b000\.dcm\)"
    if kind == "gap":
        write_series(folder, data, np.eye(4), skip=(3,))
        return "slices are 2 mm apart between .* elsewhere 1 mm"
    if kind == "same position":
        uid = write_series(folder, data, np.eye(4), prefix="a")
        write_series(folder, data, np.eye(4), prefix="b", uid=uid)
        return "lie at the same position"
    if kind == "localiser":
        uid = write_series(folder, data, np.eye(4), prefix="a")
        turned = np.eye(4)[:, [1, 2, 0, 3]]
        write_series(folder, data[:, :, :1], turned, prefix="b", uid=uid)
        return "not parallel"
    if kind == "size":
        uid = write_series(folder, data, np.eye(4), prefix="a")
        write_series(folder, data[:4, :, :1], np.eye(4), prefix="b", uid=uid)
        return "its size differs"
    write_series(folder, data, np.eye(4))
    file = sorted(folder.iterdir())[2]
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[:-40])
        return rf"{file.name}: the file is cut short"
    if kind == "not DICOM":
        file.write_bytes(b"hello")
        return rf"{file.name}: not a DICOM file"
    for f in folder.iterdir():
        d = pydicom.dcmread(f)
        if kind == "no position":
            del d.ImagePositionPatient
        else:
            d.NumberOfFrames = 3
        d.save_as(f)
    return "without a stated position" if kind == "no position" else "multi-frame"


@pytest.mark.parametrize(
    "kind",
    [
        "two series",
        "gap",
        "same position",
        "localiser",
        "size",
        "cut short",
        "not DICOM",
        "no position",
        "frames",
    ],
)
def test_faulty_dicom_is_named_without_the_patient(tmp_path, kind):
    message = faulty_series(kind, tmp_path / "s")
    with pytest.raises(InputError, match=message) as caught:
        read_image(tmp_path / "s")
    assert "Doe" not in str(caught.value)
    assert "Jane" not in str(caught.value)
    assert str(tmp_path / "s") in str(caught.value)


def test_an_empty_folder_is_no_image(tmp_path):
    with pytest.raises(InputError, match="no DICOM images"):
        read_image(tmp_path)


# --- files that cannot be read -------------------------------------------------------------------------

ENDS = [".nii", ".nii.gz", ".mha", ".nrrd", ".png", ".tif", ".jpg", ".bmp"]


@pytest.mark.parametrize("end", ENDS)
def test_damaged_files_are_named(tmp_path, end):
    path = tmp_path / f"a{end}"
    picture = end in (".png", ".tif", ".jpg", ".bmp")
    shape = (40, 50) if picture else (20, 20, 20)
    array = RNG.integers(0, 255, (1, *shape)).astype(np.float32)
    if end in (".jpg", ".bmp"):
        Pillow.fromarray(array[0].astype(np.uint8)).save(path)
    else:
        write_image(
            path, array, Image(array, Grid.of_spacing(shape, (1,) * len(shape), "px" if picture else "mm"))
        )
    good = path.read_bytes()
    read_image(path)
    for bad in (good[: len(good) // 2], b"this is not an image at all" * 20):
        path.write_bytes(bad)
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=rf"a{end}: .*; "):
                read(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="the file is empty"):
        read_image(path)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_image(path)


def test_unknown_extensions_and_unreadable_files(tmp_path):
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(InputError, match=r"a\.xyz: not an image format"):
        read_image(tmp_path / "a.xyz")
    if os.geteuid() != 0:
        (tmp_path / "a.png").write_bytes(b"x")
        (tmp_path / "a.png").chmod(0)
        with pytest.raises(InputError, match="no permission"):
            read_image(tmp_path / "a.png")


# --- probabilities -------------------------------------------------------------------------------------


def test_probabilities_of_volumes(tmp_path):
    nib.save(nib.Nifti1Image(volume(), oblique()), tmp_path / "a.nii.gz")
    image = read_image(tmp_path / "a.nii.gz")
    stored = np.memmap(tmp_path / "p.dat", np.uint16, "w+", shape=(4, 5, 6, 7))
    stored[:] = RNG.integers(0, 65536, stored.shape)
    stored[:, 0, 0, 0] = [0, 65535, 0, 0]
    write_probabilities(tmp_path / "p.nii.gz", stored, image)
    file = nib.load(tmp_path / "p.nii.gz")
    assert file.shape == (5, 6, 7, 4)
    assert file.get_data_dtype() == np.uint16
    assert (file.affine == nib.load(tmp_path / "a.nii.gz").affine).all()
    back = read_probabilities(tmp_path / "p.nii.gz")
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, stored / 65535, atol=1e-6)
    assert back[:, 0, 0, 0].tolist() == [0, 1, 0, 0]
    assert probabilities_extension(tmp_path / "a.mha") == ".nii.gz"


def test_probabilities_are_written_in_slabs(tmp_path, monkeypatch):
    monkeypatch.setattr("scotoma.data.formats.nifti._STREAM_BYTES", 2 * 5 * 6 * 2)
    stored = RNG.integers(0, 65536, (3, 5, 6, 7)).astype(np.uint16)
    like = Image(np.zeros((1, 5, 6, 7), np.float32), Grid((5, 6, 7), oblique()))
    write_probabilities(tmp_path / "p.nii", stored, like)
    np.testing.assert_allclose(read_probabilities(tmp_path / "p.nii"), stored / 65535, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_of_pictures(tmp_path, classes):
    like = Image(np.zeros((3, 4, 6), np.float32), Grid.of_spacing((4, 6), (1, 1), "px"))
    stored = RNG.integers(0, 65536, (classes, 4, 6)).astype(np.uint16)
    write_probabilities(tmp_path / "p.tif", stored, like)
    file = tifffile.imread(tmp_path / "p.tif")
    assert file.dtype == np.float32
    assert file.shape == stored.shape
    np.testing.assert_allclose(read_probabilities(tmp_path / "p.tif"), stored / 65535, atol=1e-6)
    assert probabilities_extension(Path("a.jpg")) == ".tif"


def test_headers_travel_between_processes(tmp_path):
    import pickle

    nib.save(nib.Nifti1Image(volume(), oblique()), tmp_path / "a.nii.gz")
    header = pickle.loads(pickle.dumps(read_image(tmp_path / "a.nii.gz").header))  # noqa: S301
    assert isinstance(header, NiftiHeader)


@pytest.mark.parametrize(
    ("name", "end"),
    [("a.nii.gz", ".nii.gz"), ("a.nii", ".nii"), ("a.mha", ".mha"), ("a.mhd", ".mhd"), ("a.nrrd", ".nrrd"),
     ("A.PNG", ".png"), ("a.jpg", ".png"), ("a.jpeg", ".png"), ("a.bmp", ".png"), ("a.tif", ".tif"),
     ("a.tiff", ".tif"), ("series", ".nii.gz"), ("a.dcm", ".nii.gz")],
)  # fmt: skip
def test_mask_extension(name, end):
    assert mask_extension(Path(name)) == end
