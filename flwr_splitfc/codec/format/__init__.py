"""The byte formats of payloads: little-endian, a module for each kind of field.

Formats that several codecs share are here; the header of one quantiser is beside it, as
``quantisers/<name>/header.py``, and a selection of rows or entries is beside its
selector. Nothing else in the package knows bytes. Every function that reads raises
`PayloadError` on bytes that no writer makes.

docs/wire-format.md is the whole of it, for implementers in other languages. In short:

=====================  ==============================================================
what                   bytes, and the module that writes and reads them
=====================  ==============================================================
column set, k of n     nothing for k = 0 or k = n; else the shorter of a bitmap of n
                       bits and Elias-Fano (k low parts of l bits, then k high parts
                       in unary); zero padded: `format.column_sets`
selection of columns   u32 K, column set K of D: `format.column_sets`
selection of rows      u32 channels, u32 b, column set b of B: `selectors.row_sample`
selection of entries   u32 S, column set B S of B D, with S in each row:
                       `selectors.entry_selector`
symbols                absent without symbols, else u32 number of words, and one
                       range-coded stream of so many u32 words to the end:
                       `format.symbols`
float32, float16       row-major entries: `format.floats`
int8                   f32 low and then f32 high of each group; u8 entries by row:
                       `quantisers.int8`
feature quantiser      u32 M; if M > 0: f32 low, f32 high, f32 multiplier, upgrades
                       (u32 first, u8 skipped, u8 more), column set M of K; if M < K:
                       f32 mean low, f32 mean high, u16 mean levels - 1; symbols:
                       (low, high) endpoints by column, means, entries by row:
                       `quantisers.feature.header`
even levels            u16 levels - 1, f32 low, f32 high, u8 parameter where the
                       codec has one; symbols by row: `quantisers.entry.header`
product quantiser      u32 d, u32 R, u16 L, f32 scale, R L centroids of d f16;
                       symbols if L > 1: `quantisers.product.header`
mask-encoded           u32 k, f32 scale, 6 x u32 symbol sizes, k f16; symbols:
                       `quantisers.mask.header`
transformed matrix     f32 step; unless it is 0: u8 channel reflectors, u8 row
                       reflectors, u8 known, symbols: `quantisers.transform.header`
labels                 u8 dtype, u8 ndim, u32 x ndim shape, u8 coding; if symbols:
                       varint offset, levels, values; else, unless raw, i64 offset,
                       and if range-coded u32 levels; entries: `format.label_header`
counted integers       column sets of the values and of the ends of their runs; words
                       without their number: `format.counted_integers`
even steps             nothing, or f32 step, integers by class:
                       `model_arrays.even_steps`
octave steps           i32 bits and centre, integers by class:
                       `model_arrays.octave_steps`
integers by class      u8 first class, u8 classes, 4 or 8 bits for the weight of each;
                       words without their number: `model_arrays.class_header`
=====================  ==============================================================
"""
