// Made-up problems of conv2d for the tests: for each kind a plain, a tail, a strided and a batch-1 case, and
// what kernels trip over.
#include "tests/support/shape_lists.h"

namespace kiln {
namespace {

// Every epilogue of a convolution that is more than a bias.
std::vector<std::string> test_epilogues() {
  std::vector<std::string> list;
  for (const char* scale : {"", "_scale"}) {
    for (const char* bias : {"", "_bias"}) {
      for (const char* residual : {"", "_res"}) {
        for (const char* act : {"", "_relu", "_relu6", "_gelu", "_silu"}) {
          const std::string epilogue = std::string(scale) + bias + residual + act;
          if (!epilogue.empty() && epilogue != "_bias") list.push_back(epilogue);
        }
      }
    }
  }
  return list;
}

}  // namespace

std::vector<NamedProblem> test_convolutions() {
  std::vector<NamedProblem> list;
  const auto add = [&](const std::string& label, const std::string& text, const char* passes = "") {
    list.push_back({"conv2d." + label, "conv2d", text, passes});
  };
  for (const char* filter : {"_r1", "_r3", "_r5", "_r7", "_r2", "_r3x5"}) {
    for (const char* stride : {"", "_st2", "_st1x2"}) {
      const std::string end = std::string(filter) + stride;
      add("plain", "n2_h8_w8_c16_k32" + end);
      add("tail", "n2_h7_w9_c17_k17" + end);
      add("batch1", "n1_h15_w15_c8_k24" + end);
    }
  }
  for (const char* padded :
       {"_r3_p0", "_r3_p2", "_r5_p0", "_r5_p4", "_r3x5_p0", "_r3x5_p2x4", "_r3_p0x1", "_r3_p1x0", "_r5_p1",
        "_r2_p0", "_r7_p0", "_r3_st2_p0", "_r3_st3_p1", "_r5_st3_p0"}) {
    add("padding", std::string("n2_h9_w9_c8_k16") + padded);
  }
  for (const int side : {31, 15, 7, 3}) {
    for (const char* rest : {"_c24_k16_r3", "_c16_k24_r1", "_c3_k10_r3_st2"}) {
      add("odd", "n2_h" + num(side) + "_w" + num(side) + rest);
    }
  }
  // Channel counts around the sizes of tiles and vectors.
  for (const int c : {1, 2, 4, 8, 12, 24, 40, 64, 72}) {
    for (const int k : {1, 8, 10, 20, 64}) add("channels", "n2_h6_w6" + channels(c) + "_k" + num(k) + "_r3");
  }
  for (const char* wide : {"_c128_k128_r3", "_c256_k64_r3", "_c64_k256_r3", "_c160_k136_r3", "_c128_k96_r1",
                           "_c96_k192_r1_st2", "_c320_k16_r1", "_c129_k65_r3"}) {
    add("wide", std::string("n1_h8_w8") + wide);
  }
  for (const char* rows :
       {"n3_h5_w6_c32_k32_r3", "n5_h16_w16_c32_k32_r3", "n1_h1_w1_c64_k64_r3", "n7_h4_w4_c64_k64_r3",
        "n1_h1_w33_c16_k16_r3", "n1_h33_w1_c16_k16_r3", "n33_h2_w2_c16_k16_r3", "n130_h1_w1_c32_k32_r1",
        "n2_h32_w32_c16_k16_r3", "n1_h64_w48_c8_k8_r3"}) {
    add("rows", rows);
  }
  // 1x1: each width of a column tile, rows that make whole groups of 64 and such that do not, several slices
  // of channels and column tiles, sums that two blocks share.
  for (const char* pixels :
       {"n2_h8_w8_c16_k96_r1", "n3_h7_w9_c24_k144_r1", "n5_h8_w8_c144_k24_r1", "n3_h5_w5_c8_k8_r1",
        "n5_h8_w8_c32_k192_r1", "n3_h9_w9_c96_k136_r1", "n1_h8_w8_c64_k384_r1", "n2_h7_w7_c384_k64_r1",
        "n9_h4_w4_c960_k160_r1", "n8_h4_w4_c576_k160_r1", "n3_h4_w4_c160_k960_r1", "n1_h8_w8_c72_k128_r1"}) {
    add("pointwise", pixels);
  }
  // The same with two row tiles for each of 132 blocks, where wide tiles are chosen.
  for (const char* many : {"n132_h16_w16_c16_k96_r1", "n132_h16_w16_c16_k144_r1", "n131_h15_w17_c8_k160_r1",
                           "n132_h16_w16_c8_k192_r1", "n132_h16_w16_c16_k128_r1"}) {
    add("pointwise", many, "fwd");
  }
  for (const char* many : {"n132_h16_w16_c96_k16_r1_acc", "n131_h15_w17_c144_k16_r1_acc",
                           "n132_h16_w16_c192_k8_r1_acc", "n132_h16_w16_c64_k40_r1_acc"}) {
    add("pointwise", many, "dgrad");
  }
  add("pointwise", "n3_h8_w8_c16_k96_r1_cs24_bias", "fwd");
  add("pointwise", "n9_h4_w4_c960_k160_r1_bias", "fwd");
  // So many channels that pairs of blocks, which share a tile's sum, are chosen.
  for (const char* shared : {"n9_h4_w4_c1976_k72_r1", "n9_h4_w4_c1976_k72_r1_bias"}) {
    add("pointwise", shared, "fwd");
  }
  for (const char* shared : {"n9_h4_w4_c72_k1976_r1", "n9_h4_w4_c72_k1976_r1_acc"}) {
    add("pointwise", shared, "dgrad");
  }
  for (const char* added : {"n5_h8_w8_c24_k96_r1_acc", "n3_h7_w9_c144_k24_r1_acc",
                            "n8_h4_w4_c160_k960_r1_acc", "n3_h7_w9_c136_k72_r1_acc"}) {
    add("pointwise", added, "dgrad");
  }
  // Long reductions: more slices of channels than a ring has stages, parts of tiles and of slices, one pixel,
  // several tiles for some of 132 blocks.
  for (const char* deep : {"n9_h5_w7_c648_k168_r1", "n9_h5_w7_c168_k648_r1", "n3_h7_w9_c72_k136_r1",
                           "n1_h1_w1_c40_k40_r1", "n133_h16_w16_c40_k40_r1"}) {
    add("deep", deep, "fwd,dgrad");
  }
  // Few channels: each class of them full and not, one pixel, rows that make no whole group; two turns for
  // some of the warps of 132 blocks, or of twice or thrice as many.
  for (const char* few :
       {"n3_h7_w9_c96_k16_r1", "n3_h7_w9_c88_k32_r1", "n5_h5_w5_c40_k24_r1", "n1_h1_w1_c8_k96_r1",
        "n1_h1_w7_c72_k8_r1", "n2_h15_w15_c24_k96_r1", "n3_h9_w9_c32_k80_r1", "n1_h3_w5_c32_k32_r1",
        "n2_h7_w9_c24_k16_r1", "n1_h1_w17_c16_k32_r1", "n131_h21_w19_c16_k96_r1", "n131_h17_w16_c72_k16_r1",
        "n131_h17_w16_c96_k24_r1", "n131_h17_w16_c24_k96_r1", "n131_h21_w19_c32_k16_r1",
        "n131_h21_w19_c16_k24_r1"}) {
    add("direct", few, "fwd,dgrad");
  }
  for (const char* biased : {"n3_h7_w9_c16_k96_r1_bias", "n3_h7_w9_c72_k24_r1_bias",
                             "n2_h5_w9_c24_k88_r1_bias", "n3_h7_w9_c96_k8_r1_bias"}) {
    add("direct", biased, "fwd");
  }
  // Many channels of dx and one slab of rows a block: each number of output channels, chunks and slabs that
  // are not full, one chunk, one pixel.
  for (const char* slab :
       {"n3_h7_w9_c72_k64_r1", "n2_h5_w5_c328_k96_r1", "n1_h1_w1_c8_k160_r1", "n13_h4_w4_c1000_k64_r1",
        "n51_h4_w4_c320_k128_r1", "n40_h4_w4_c648_k160_r1", "n3_h8_w8_c384_k96_r1"}) {
    add("slab", slab, "dgrad");
  }
  // wgrad from memory in lines of 128 bytes, pixels in multiples of 8: each class of channels full and not,
  // on either side, one chunk and a part of one, more chunks than blocks; chunks of two, four and eight times
  // as many pixels, rings that are filled again, a last chunk that is not full.
  for (const char* lines : {"n1_h1_w8_c136_k8_r1",     "n1_h8_w8_c128_k64_r1",    "n3_h8_w9_c72_k40_r1",
                            "n3_h8_w9_c40_k64_r1",     "n7_h8_w9_c64_k48_r1",     "n3_h8_w9_c152_k8_r1",
                            "n2_h6_w6_c32_k192_r1",    "n3_h8_w9_c104_k32_r1",    "n1_h9_w8_c24_k144_r1",
                            "n5_h6_w4_c96_k24_r1",     "n5_h6_w4_c16_k88_r1",     "n9_h8_w5_c40_k24_r1",
                            "n2_h6_w6_c32_k64_r1",     "n3_h8_w9_c32_k24_r1",     "n9_h8_w5_c8_k32_r1",
                            "n131_h17_w16_c96_k24_r1", "n131_h17_w16_c32_k72_r1", "n131_h17_w16_c8_k192_r1",
                            "n135_h28_w36_c24_k24_r1", "n135_h28_w36_c32_k16_r1", "n266_h29_w36_c8_k40_r1",
                            "n543_h28_w36_c8_k8_r1"}) {
    add("lines", lines, "wgrad");
  }
  // Padded maps that a tile sweeps over: pitches of 16, 32 and others, tiles of several images, filters that
  // stay in shared memory and such that do not, several column tiles, slices of channels that are not full.
  for (const char* swept : {"n3_h15_w15_c64_k64_r3", "n2_h31_w31_c24_k64_r3", "n2_h15_w15_c64_k256_r3",
                            "n2_h15_w15_c40_k136_r3", "n3_h7_w9_c40_k48_r3x5", "n2_h15_w15_c72_k40_r5",
                            "n3_h9_w9_c48_k96_r3_p0", "n3_h9_w9_c48_k96_r3_p2", "n2_h32_w32_c32_k32_r3",
                            "n9_h5_w7_c16_k24_r3x1_p1x0", "n9_h5_w7_c16_k24_r1x3", "n1_h5_w90_c64_k64_r5"}) {
    add("swept", swept);
  }
  // Classes of pixels under a stride: of different sizes, without taps, with their first tap beyond the map;
  // more tiles than blocks, several column tiles.
  for (const char* strided :
       {"n2_h9_w9_c8_k16_r3_st2_p2", "n5_h15_w15_c40_k72_r3_st2", "n2_h7_w9_c24_k16_r5_st2_p1_acc",
        "n3_h9_w16_c64_k40_r3_st2x1", "n2_h10_w7_c16_k16_r2_st4", "n3_h1_w9_c16_k24_r3_st2",
        "n2_h8_w8_c264_k72_r3_st2", "n3_h32_w32_c64_k72_r3_st2_acc", "n264_h32_w32_c8_k8_r3_st2",
        "n150_h31_w31_c8_k8_r3_st2", "n264_h31_w31_c8_k8_r3_st2", "n700_h9_w7_c8_k16_r3_st2_acc",
        "n264_h32_w32_c8_k8_r1_st2", "n200_h15_w31_c136_k8_r1_st2x3"}) {
    add("strided", strided, "dgrad");
  }
  // Channels in fours: taps that change within a step, several tiles with tails, the longest window, an odd
  // channel stride.
  for (const char* fours : {"n2_h7_w9_c20_k20_r3", "n2_h7_w9_c20_k20_r5_st2", "n2_h7_w9_c20_k20_r3_st1x2",
                            "n2_h20_w20_c4_k100_r3", "n3_h15_w17_c12_k68_r3_st2", "n2_h20_w20_c68_k196_r3",
                            "n2_h9_w9_c8_k16_r15_p14_st2", "n1_h8_w8_c16_k16_r3_cs18"}) {
    add("fours", fours);
  }
  add("fours", "n2_h7_w9_c20_k36_r3_bias", "fwd,wgrad");
  add("fours", "n2_h7_w9_c20_k36_r3_acc", "dgrad");
  for (const char* input : {"n2_h32_w32_c3_k32_r3", "n2_h32_w32_c3_k32_r3_cs8", "n2_h32_w32_c3_k32_r3_cs4",
                            "n2_h7_w9_c3_k17_r3_cs8", "n2_h8_w8_c3_k16_r5_st2_cs8",
                            "n1_h8_w8_c16_k16_r3_cs24", "n2_h8_w8_c1_k16_r3_cs8", "n2_h8_w8_c3_k10_r1_cs8"}) {
    add("image", input);
  }
  // wgrad: parts of unequal tiles, taps that never leave the padding, blocks of images with a rest, maps that
  // are walked by rows, one column tile, one part, fewer steps than blocks that share them, equal shares of
  // taps of unequal length; 128 x 128 tiles (pairs: test_extra_large); shares that go on in the next tile
  // long enough to fill the ring again; pairs of 128 x 256, 64 x 576, 128 x 192 and 256 x 128 tiles.
  for (const char* sums :
       {"n70_h4_w4_c72_k136_r3",   "n100_h8_w8_c64_k40_r3_st2",  "n130_h3_w3_c128_k72_r3",
        "n70_h2_w2_c128_k8_r7",    "n66_h5_w3_c40_k24_r3x5",     "n200_h4_w4_c128_k24_r3_st2x1",
        "n3_h9_w7_c96_k24_r1",     "n64_h4_w4_c200_k72_r1",      "n3_h31_w31_c24_k40_r3",
        "n2_h15_w15_c64_k72_r3",   "n2_h16_w20_c40_k16_r3_p2",   "n2_h5_w48_c72_k8_r3_p0x1",
        "n3_h4_w62_c8_k8_r3_p1x2", "n140_h16_w16_c16_k16_r3",    "n600_h4_w4_c64_k16_r3",
        "n2_h33_w30_c64_k64_r3",   "n3_h15_w15_c24_k16_r3_bias", "n90_h4_w4_c64_k16_r3_bias",
        "n520_h3_w3_c64_k24_r3",   "n40_h4_w4_c264_k136_r1",     "n2_h6_w6_c128_k264_r3",
        "n300_h2_w2_c72_k72_r2",   "n1_h3_w2_c8_k8_r3_p0x1",     "n160_h8_w8_c8_k264_r1",
        "n500_h2_w2_c512_k8_r3",   "n500_h3_w3_c256_k8_r3",      "n97_h4_w4_c136_k136_r1",
        "n97_h3_w3_c256_k24_r3",   "n33_h13_w13_c136_k8_r3x5",   "n33_h16_w16_c16_k8_r5",
        "n200_h2_w2_c16_k200_r2"}) {
    add("sums", sums, "wgrad");
  }
  // One output pixel of many images a tile: images that fill no tile, pixels without a tap or with some, all
  // pixels at the rim, more than one tile a block, of unequal length, more tiles than a block's list has.
  for (const char* pixels : {"n130_h3_w3_c72_k72_r3", "n130_h2_w2_c64_k264_r3", "n257_h2_w2_c72_k72_r3",
                             "n200_h1_w2_c16_k32_r5_p4", "n193_h3_w3_c24_k24_r3x5_p2x4",
                             "n150_h9_w9_c8_k16_r3_p0", "n140_h24_w20_c8_k8_r3", "n3_h38_w36_c8_k136_r3",
                             "n1_h1_w1200_c8_k8_r3", "n385_h3_w3_c16_k136_r3", "n140_h8_w7_c8_k136_r3"}) {
    add("pixel", pixels);
  }
  add("pixel", "n150_h8_w7_c40_k72_r3_st2_bias", "fwd");
  add("pixel", "n260_h3_w4_c40_k40_r3_cs48_bias", "fwd");
  add("pixel", "n260_h3_w3_c72_k40_r3_acc", "dgrad");
  // Behind strides: classes without a pixel, a tap or either, maps whose last rows no tap meets.
  for (const char* strided :
       {"n130_h5_w8_c128_k40_r3_st2", "n140_h7_w5_c136_k24_r3_st2_acc", "n130_h4_w6_c64_k40_r2_st3_p0",
        "n200_h3_w2_c40_k72_r1_st2", "n129_h6_w5_c128_k16_r5x3_st3x2_p2x1", "n130_h5_w7_c72_k64_r3_st4_p0"}) {
    add("pixel", strided, "dgrad");
  }
  add("pixel", "n150_h24_w20_c8_k8_r3_acc", "dgrad");
  // Few channels: the 2x2 filter of whitening, tiles of several images and of one row, blocks of several
  // tiles, filters of more than 32 terms or 64 channels.
  for (const char* few : {"n3_h31_w31_c3_k24_r2_p0", "n70_h4_w4_c3_k64_r3", "n300_h1_w1_c3_k8_r3",
                          "n1000_h16_w16_c3_k8_r3", "n1_h20_w300_c3_k40_r3", "n1_h9_w1100_c3_k16_r3_st2",
                          "n5_h7_w9_c5_k72_r3_st2_cs6", "n3_h32_w32_c3_k64_r3_cs4", "n2_h9_w9_c3_k128_r5",
                          "n2_h9_w9_c2_k64_r3x5_p2x4", "n2_h9_w9_c1_k24_r7"}) {
    add("few", few);
  }
  add("few", "n2_h8_w8_c8_k64_r2_bias", "fwd,wgrad");
  add("few", "n40_h3_w5_c3_k72_r3_bias", "fwd,wgrad");
  add("few", "n2_h32_w32_c3_k64_r3_acc", "dgrad");
  add("few", "n9_h7_w7_c3_k32_r3_st2_acc", "dgrad");
  for (const char* biased :
       {"n2_h8_w8_c16_k32_r3_bias", "n2_h7_w9_c17_k17_r3_bias", "n2_h8_w8_c32_k64_r1_bias",
        "n1_h9_w9_c8_k16_r3_st2_bias", "n2_h8_w8_c3_k32_r3_cs8_bias", "n2_h8_w8_c64_k10_r1_bias",
        "n2_h15_w15_c24_k40_r3_bias"}) {
    add("bias", biased, "fwd,wgrad");
  }
  for (const char* residual :
       {"n2_h8_w8_c16_k32_r3_acc", "n2_h7_w9_c17_k17_r3_acc", "n2_h8_w8_c32_k64_r1_acc",
        "n1_h9_w9_c8_k16_r3_st2_acc", "n2_h8_w8_c32_k64_r1_st2_acc", "n2_h8_w8_c64_k64_r3_acc",
        "n2_h8_w8_c8_k8_r5_acc", "n2_h9_w9_c24_k16_r3_st1x2_acc", "n2_h15_w15_c24_k64_r3_acc",
        "n4_h16_w16_c136_k72_r3_acc", "n3_h15_w17_c264_k40_r3_acc", "n140_h16_w16_c32_k8_r3_acc",
        "n9_h9_w9_c264_k40_r3_st2_acc"}) {
    add("accumulate", residual, "dgrad");
  }
  // Epilogues: all of them on a shape of odd channels, a third of them on shapes that
  // the others take: whole map rows, swept maps, tiles in lines, in boxes, shared by two blocks, few
  // channels.
  const std::vector<std::string> epilogues = test_epilogues();
  for (const std::string& epilogue : epilogues) add("epilogue", "n2_h7_w9_c17_k17_r3" + epilogue, "fwd");
  size_t turn = 0;
  for (const std::string shape :
       {"n2_h7_w9_c20_k20_r3", "n3_h8_w8_c64_k72_r3", "n2_h15_w15_c24_k40_r3", "n2_h15_w15_c40_k136_r3",
        "n3_h7_w9_c24_k144_r1", "n5_h8_w8_c24_k96_r1", "n9_h4_w4_c1976_k72_r1", "n3_h31_w31_c3_k24_r3_cs8",
        "n5_h7_w9_c5_k72_r3_st2_cs6", "n2_h9_w9_c8_k16_r3_st2", "n2_h8_w8_c64_k10_r3", "n1_h1_w1_c64_k64_r3",
        "n2_h9_w7_c264_k264_r3_st2", "n131_h15_w17_c8_k160_r1"}) {
    add("epilogue", shape + "_scale_bias_res_relu", "fwd");
    for (size_t i = turn++ % 3; i < epilogues.size(); i += 3) {
      if (epilogues[i] != "_scale_bias_res_relu") add("epilogue", shape + epilogues[i], "fwd");
    }
  }
  for (const char* many :
       {"n140_h16_w16_c16_k16_r3_scale_bias_res_relu", "n132_h16_w16_c16_k96_r1_res_relu6",
        "n132_h15_w16_c16_k192_r1_scale_bias_res", "n600_h16_w16_c3_k8_r3_bias_res_relu",
        "n66_h3_w3_c64_k264_r3_scale_bias_res_relu", "n2_h16_w16_c64_k264_r3_scale_bias_res_relu",
        "n130_h4_w4_c64_k72_r3_bias_res_relu6", "n130_h4_w4_c64_k72_r3_scale"}) {
    add("epilogue", many, "fwd");
  }
  // Statistics of y: odd channels, tiles of one image and of several, whole map rows, swept maps, many images
  // of a pixel, lines and boxes of pixels, tiles that two blocks share, last tiles with few pixels, blocks of
  // many tiles, several column tiles, few channels, one pixel; with a bias and without, which are counted in
  // different ways.
  for (const char* counted : {"n2_h7_w9_c17_k17_r3",          "n2_h7_w9_c17_k17_r3_bias",
                              "n2_h7_w9_c20_k20_r3_bias",     "n1_h1_w1_c64_k64_r3",
                              "n3_h8_w8_c64_k72_r3",          "n3_h8_w8_c64_k72_r3_bias",
                              "n2_h32_w32_c64_k64_r3",        "n2_h15_w15_c24_k40_r3",
                              "n2_h15_w15_c40_k136_r3_bias",  "n2_h9_w9_c8_k16_r3_st2",
                              "n2_h9_w7_c264_k264_r3_st2",    "n140_h16_w16_c16_k16_r3_bias",
                              "n140_h16_w16_c48_k8_r3x1",     "n400_h32_w32_c8_k8_r3x1",
                              "n130_h4_w4_c64_k72_r3_bias",   "n66_h3_w3_c64_k264_r3",
                              "n150_h8_w8_c64_k16_r3",        "n150_h8_w7_c40_k72_r3_st2_bias",
                              "n3_h32_w32_c64_k128_r1_st2",   "n3_h7_w9_c24_k144_r1_bias",
                              "n5_h8_w8_c24_k96_r1",          "n9_h4_w4_c576_k160_r1_bias",
                              "n131_h15_w17_c8_k160_r1_bias", "n132_h16_w16_c16_k96_r1",
                              "n132_h15_w16_c16_k192_r1",     "n281_h31_w33_c8_k24_r1_bias",
                              "n3_h31_w31_c3_k24_r3_cs8",     "n5_h7_w9_c5_k72_r3_st2_cs6_bias",
                              "n2_h8_w8_c64_k10_r3",          "n130_h4_w4_c16_k192_r3",
                              "n130_h4_w4_c64_k72_r3",        "n3_h16_w16_c64_k136_r3",
                              "n150_h8_w7_c40_k72_r3_st2",    "n3_h11_w13_c32_k88_r1",
                              "n3_h7_w9_c24_k144_r1",         "n9_h4_w4_c1976_k72_r1",
                              "n131_h15_w17_c8_k160_r1",      "n281_h31_w33_c8_k24_r1"}) {
    add("statistics", std::string(counted) + "_stats", "fwd");
  }
  // A pooled output: maps with an odd side, channels that fill no byte, tiles of several rows, of several
  // images and of the whole map, more tiles than blocks, several column tiles.
  for (const char* shape : {"n2_h7_w9_c17_k17_r3",      "n2_h7_w9_c20_k10_r3_st2",  "n3_h8_w8_c64_k72_r3",
                            "n2_h32_w32_c32_k32_r3",    "n3_h16_w16_c64_k64_r3",    "n5_h8_w8_c128_k128_r3",
                            "n2_h16_w16_c64_k200_r3",   "n9_h8_w8_c64_k264_r3",     "n2_h9_w16_c64_k64_r3",
                            "n2_h15_w15_c24_k40_r3",    "n150_h8_w8_c64_k16_r3",    "n34_h32_w32_c8_k8_r3",
                            "n2_h16_w8_c64_k24_r5",     "n2_h2_w2_c8_k8_r1",        "n1_h5_w5_c8_k4_r3x1_p0",
                            "n3_h16_w24_c64_k48_r2_p0", "n3_h31_w31_c3_k24_r3_cs8", "n3_h8_w8_c32_k64_r1",
                            "n4_h4_w4_c64_k64_r3",      "n1_h64_w64_c8_k16_r3"}) {
    for (const char* epilogue : {"_max2", "_max2_arg2", "_bias_relu_max2_arg2", "_scale_bias_relu_max2",
                                 "_scale_bias_res_relu6_max2_arg2"}) {
      add("pooled", std::string(shape) + epilogue, "fwd");
    }
  }
  // Back through the activation whose output the convolution read.
  for (const char* shape :
       {"n2_h7_w9_c17_k17_r3",       "n2_h7_w9_c20_k20_r3",      "n3_h8_w8_c64_k72_r3",
        "n2_h32_w32_c64_k64_r3",     "n5_h8_w8_c128_k128_r3",    "n3_h8_w8_c264_k64_r3",
        "n2_h15_w15_c24_k40_r3",     "n2_h15_w15_c40_k136_r3",   "n3_h7_w9_c24_k144_r1",
        "n5_h8_w8_c24_k96_r1",       "n9_h4_w4_c576_k160_r1",    "n130_h4_w4_c64_k72_r3",
        "n150_h24_w20_c8_k8_r3",     "n260_h3_w3_c72_k40_r3",    "n2_h9_w9_c8_k16_r3_st2",
        "n3_h32_w32_c64_k72_r3_st2", "n2_h8_w8_c64_k10_r3",      "n2_h32_w32_c3_k32_r3",
        "n2_h32_w32_c3_k32_r3_cs8",  "n1_h8_w8_c16_k16_r3_cs18", "n131_h15_w17_c160_k8_r1",
        "n2_h9_w9_c24_k16_r3_st1x2", "n66_h3_w3_c264_k64_r3",    "n2_h8_w8_c32_k64_r5",
        "n9_h4_w4_c72_k1976_r1"}) {
    for (const char* act : {"_drelu", "_drelu6"}) add("gated", std::string(shape) + act, "dgrad");
  }
  return list;
}

}  // namespace kiln
