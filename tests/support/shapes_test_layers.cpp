// Made-up problems of all other ops for the tests, as shapes_test_conv2d.cpp.
#include "tests/support/shape_lists.h"

namespace kiln {
namespace {

using Texts = std::vector<std::string>;

constexpr const char* kElementwise[] = {"relu", "relu6", "gelu", "silu", "add"};

}  // namespace

std::vector<NamedProblem> test_depthwise_convolutions() {
  std::vector<NamedProblem> list;
  const auto add = [&](const std::string& text, const char* passes = "") {
    list.push_back({"depthwise_conv2d.made_up", "depthwise_conv2d", text, passes});
  };
  for (const char* filter : {"_r3", "_r5", "_r1", "_r7", "_r2", "_r3x5"}) {
    for (const char* stride : {"", "_st2", "_st1x2"}) {
      for (const char* image : {"n2_h8_w8_c32", "n2_h7_w9_c17", "n1_h15_w15_c24"}) {
        add(std::string(image) + filter + stride);
      }
    }
  }
  for (const char* text : {"n2_h9_w9_c16_r3_p0", "n2_h9_w9_c16_r3_p2", "n2_h9_w9_c16_r5_p0",
                           "n2_h32_w32_c8_r3", "n1_h1_w1_c64_r3", "n3_h4_w4_c136_r3", "n2_h31_w31_c10_r3_st2",
                           "n2_h3_w3_c256_r3", "n33_h2_w2_c16_r3", "n1_h1_w33_c8_r3", "n2_h8_w8_c1_r3",
                           "n2_h8_w8_c3_r5", "n5_h16_w16_c40_r3_st2", "n1_h64_w48_c4_r3"}) {
    add(text);
  }
  // Cells, strips and tasks of the sliding windows that begin or end outside the image, or are many.
  for (const char* padded : {"_r3_st2_p0", "_r3_st2_p2", "_r3_st2_p0x1", "_r3_st2_p2x1", "_r5_p4", "_r5_p3x1",
                             "_r5_st2_p0", "_r5_st2_p1", "_r5_st2_p3x4", "_r3_p1x0"}) {
    for (const char* image : {"n2_h9_w9_c16", "n1_h8_w6_c10"}) add(std::string(image) + padded);
  }
  for (const char* text : {"n2_h31_w31_c8_r3", "n2_h15_w15_c144_r3", "n1_h7_w7_c960_r3", "n2_h7_w7_c96_r5",
                           "n2_h3_w3_c34_r5_st2", "n600_h2_w2_c2_r3", "n300_h4_w4_c10_r5",
                           "n1_h9_w70_c6_r3_st2", "n1_h70_w9_c6_r5", "n150_h7_w5_c12_r3_st2"}) {
    add(text);
  }
  // Rings of tiles that go round several times, tiles of several images, slices of channels that are not
  // full, maps wider and higher than a tile.
  for (const char* text :
       {"n530_h4_w4_c24_r3", "n300_h8_w8_c72_r3", "n700_h3_w3_c16_r5", "n90_h16_w16_c40_r5",
        "n40_h32_w32_c64_r3", "n60_h31_w31_c32_r3_st2", "n200_h9_w9_c48_r5_st2", "n1_h20_w300_c8_r3",
        "n1_h300_w20_c8_r3_st2", "n2_h5_w5_c1032_r3"}) {
    add(text);
  }
  // Blocks that walk down several groups of images one after the other, the last of which is not full.
  for (const char* text : {"n1301_h4_w4_c104_r3", "n2500_h3_w3_c96_r3", "n601_h8_w8_c96_r3_st2_p0"})
    add(text);
  for (const char* text :
       {"n2_h8_w8_c32_r3_bias", "n2_h7_w9_c17_r3_bias", "n2_h8_w8_c24_r5_st2_bias", "n2_h9_w7_c24_r5_bias",
        "n70_h8_w8_c72_r3_bias", "n3_h9_w7_c10_r3_st2_bias", "n2_h7_w9_c5_r5_bias"}) {
    add(text, "fwd,wgrad");
  }
  return list;
}

std::vector<NamedProblem> test_other_layers() {
  std::vector<NamedProblem> list;
  const auto add = [&](const char* op, const std::string& text, const char* passes = "") {
    list.push_back({std::string(op) + ".made_up", op, text, passes});
  };
  for (const int n : {1, 2, 17, 64, 200}) {
    for (const int c : {1, 3, 17, 64, 512}) {
      for (const int k : {1, 10, 17, 128}) {
        add("linear", "n" + num(n) + channels(c) + "_k" + num(k) + ((n + c + k) % 2 ? "_bias" : ""));
      }
    }
  }
  for (const char* text : {"n32_c2048_k10_bias", "n128_c65_k129", "n129_c33_k31_bias", "n8_c768_k256_bias"}) {
    add("linear", text);
  }
  // One row, one output and one slice of features; rows that tensor maps refuse; more tiles than a band has;
  // sums that are cut; results in fp32.
  for (const char* text :
       {"n1_c8_k1", "n1_c2056_k10_bias", "n3_c8_k10_bias_f32out", "n7_c24_k8_bias", "n9_c520_k16_f32out",
        "n17_c1031_k10_bias", "n65_c72_k33_f32out", "n130_c264_k136_bias", "n130_c520_k128_bias",
        "n64_c72_k72_f32out", "n300_c72_k72_bias_f32out", "n33_c2056_k1000_f32out", "n257_c1048_k264_bias",
        "n64_c10000_k80", "n2300_c136_k72_bias", "n5200_c64_k72_bias", "n2050_c16_k10_bias"}) {
    add("linear", text);
  }

  const Texts images = {"n2_h8_w8", "n2_h7_w9",   "n1_h15_w15", "n3_h4_w4",
                        "n5_h3_w3", "n2_h31_w31", "n64_h1_w1"};
  for (const std::string& image : images) {
    for (const int c : {1, 3, 8, 10, 17, 64, 130}) {
      add("batchnorm", image + channels(c) + (c % 2 ? "" : "_relu"));
      for (const char* op : kElementwise) add(op, image + channels(c));
      add("global_avg_pool", image + channels(c));
    }
  }
  for (const char* text :
       {"n2_h8_w8_c16", "n2_h8_w8_c512", "n1_h8_w8_c1024_relu", "n2_h8_w8_c16_eps0.001",
        "n2_h8_w8_c16_mom0.5", "n2_h7_w9_c17_relu_eps0.01_mom0.01", "n1_h2_w2_c24", "n40_h16_w16_c32_relu",
        "n300_h4_w4_c20", "n2_h8_w8_c16_mom1", "n2_h8_w8_c16_mom0"}) {
    add("batchnorm", text);
  }
  // Chunks longer than a ring of shared memory, which backward goes round more than twice; tiles of channels
  // of which the last is narrow; rows of threads that are no power of two.
  for (const char* text :
       {"n480_h31_w31_c16_relu", "n20_h31_w31_c152_relu", "n9_h32_w32_c144_relu6", "n33_h17_w16_c96",
        "n40_h16_w16_c24_relu", "n70_h7_w7_c320_res", "n60_h4_w4_c960_relu6", "n12_h15_w15_c72_res_relu"}) {
    add("batchnorm", text);
  }
  add("batchnorm", "n1_h1_w1_c16",
      "fwd_train,fwd_apply,fwd_infer");  // one value a channel: no gradient passes
  // Windows of 2x2 behind it: odd maps, whose last row or column is in none; one window; channels that fill
  // no vector and no byte of positions; more windows than a launch has threads; tiles of channels.
  for (const char* act : {"", "_relu", "_relu6"}) {
    for (const std::string& image : Texts{"n2_h8_w8", "n2_h7_w9", "n3_h2_w2", "n1_h15_w6"}) {
      for (const int c : {1, 10, 12, 24, 264}) {
        add("batchnorm", image + channels(c) + act + "_max2");
      }
    }
  }
  for (const char* text : {"n40_h16_w16_c32_relu_max2", "n9_h31_w31_c152_relu6_max2_eps0.001_mom0.5",
                           "n130_h32_w32_c16_relu_max2", "n3_h2_w3_c520_max2"}) {
    add("batchnorm", text);
  }
  // Bytes of the mask: partly filled, of one bf16 vector, of two fp32 vectors, of a block with an odd number.
  for (const char* act : {"_res_relu", "_res_relu6", "_res", "_relu6", "_gelu", "_silu"}) {
    for (const std::string& image : Texts{"n2_h7_w9", "n5_h3_w3", "n2_h31_w31"}) {
      for (const int c : {10, 1, 12, 17, 24, 64, 152}) add("batchnorm", image + channels(c) + act);
    }
    add("batchnorm", std::string("n40_h16_w16_c32") + act + "_eps0.001_mom0.5");
    add("batchnorm", std::string("n3_h8_w8_c520") + act);
  }
  for (const char* text :
       {"n1_h1_w1_c1", "n1_h1_w7_c1", "n1_h1_w8_c1", "n1_h1_w9_c1", "n3_h100_w100_c7", "n1_h1_w65537_c1"}) {
    for (const char* op : kElementwise) add(op, text);
  }
  for (const char* text : {"n1_h1_w1_c512", "n2_h32_w32_c33", "n3_h2_w2_c2048"}) add("global_avg_pool", text);

  for (const char* window : {"_r2_st2_p0", "_r3_st2_p1", "_r3_st1_p1", "_r2_st1_p0", "_r3x2_st2x1_p1x0",
                             "_r3_st3_p0", "_r4_st2_p2"}) {
    for (const std::string& image : Texts{"n2_h8_w8", "n2_h7_w9", "n1_h31_w31", "n3_h15_w15"}) {
      for (const int c : {3, 16, 17}) {
        const std::string text = image + channels(c) + window;
        add("max_pool2d", text + "_arg8");
        if (c == 16) add("max_pool2d", text, "fwd");
      }
    }
  }
  for (const char* text :
       {"n1_h3_w3_c256_r2_st2_p0_arg8", "n2_h4_w4_c1_r2_st2_p0_arg8", "n2_h9_w9_c8_r9_st1_p0_arg8",
        "n1_h2_w2_c8_r2_st2_p0_arg8", "n5_h6_w6_c40_r2_st2_p0_arg8", "n1_h8_w8_c8_r1_st2_p0_arg8"}) {
    add("max_pool2d", text);
  }
  // Two bits a position: bytes of one to four channels, vectors of 4, 8 and 16, pixels that no window covers,
  // windows that overlap and that reach into the padding.
  for (const char* window : {"_r2_st2_p0", "_r2_st1_p0", "_r2_st2_p1", "_r2_st3x1_p0x1"}) {
    for (const char* image : {"n2_h8_w8", "n3_h7_w9", "n1_h31_w31"}) {
      for (const int c : {1, 3, 4, 8, 10, 12, 16, 17, 20, 24, 40, 64}) {
        add("max_pool2d", image + channels(c) + window + "_arg2");
      }
    }
  }
  for (const char* text :
       {"n1_h2_w2_c8_r2_st2_p0_arg2", "n1_h3_w3_c256_r2_st2_p0_arg2", "n9_h16_w16_c72_r2_st2_p0_arg2",
        "n40_h16_w18_c32_r2_st2_p0_arg2", "n3_h5_w4_c520_r2_st2_p0_arg2"}) {
    add("max_pool2d", text);
  }

  for (const char* window :
       {"_r2_st2_p0", "_r3_st2_p1", "_r3_st1_p1", "_r2_st1_p0", "_r3x2_st2x1_p1x0", "_r3_st3_p0",
        "_r4_st2_p2", "_r2_st2_p1", "_r2_st3_p0", "_r1_st2_p0", "_r7_st1_p3", "_r5x3_st1x2_p2x0"}) {
    for (const std::string& image : Texts{"n2_h8_w8", "n2_h7_w9", "n1_h31_w31"}) {
      for (const int c : {3, 16, 17}) add("avg_pool2d", image + channels(c) + window);
    }
  }
  for (const char* text : {"n1_h7_w7_c256_r7_st1_p0", "n2_h4_w4_c1_r2_st2_p0", "n2_h9_w9_c8_r9_st1_p0",
                           "n3_h2_w2_c8_r2_st2_p0", "n5_h6_w6_c40_r2_st2_p0", "n2_h8_w8_c8_r1_st1_p0",
                           "n1_h1_w1_c64_r1_st1_p0", "n1_h1_w33_c24_r1x2_st1x2_p0", "n33_h4_w4_c12_r2_st2_p0",
                           "n2_h32_w32_c64_r2_st2_p0", "n1_h3_w300_c8_r3_st1_p1"}) {
    add("avg_pool2d", text);
  }
  for (const std::string& image : images) {
    for (const int c : {1, 3, 8, 10, 17, 64, 130}) {
      add("global_max_pool", image + channels(c) + "_arg32");
      if (c == 8 || c == 17) add("global_max_pool", image + channels(c), "fwd");
    }
  }
  for (const char* text : {"n1_h1_w1_c512", "n2_h32_w32_c33", "n3_h2_w2_c2048", "n1_h60_w70_c16"}) {
    add("global_max_pool", text + std::string("_arg32"));
  }

  for (const int n : {1, 2, 7, 33, 100, 513}) {
    for (const int c : {2, 3, 10, 17, 32, 100, 1000}) {
      if (n * c > 150000) continue;
      add("softmax_xent", "n" + num(n) + channels(c) + "_ls0.1");
      if (c != 17) add("softmax_xent", "n" + num(n) + channels(c));
    }
  }
  for (const char* text :
       {"n5_c1024", "n5_c1025_ls0.2", "n3_c4099", "n2000_c10_ls0.1", "n9_c64_ls1", "n1500_c8_ls0.1",
        "n1490_c32_ls0.1", "n1100_c17", "n21_c256_ls0.1", "n19_c250_ls0.1", "n11_c4096_ls0.1",
        "n9_c4089_ls0.1", "n9_c4093", "n41_c1017_ls0.1", "n40_c999_ls0.1"})
    add("softmax_xent", text);
  return list;
}

std::vector<NamedProblem> test_updates() {
  std::vector<NamedProblem> list;
  const auto add = [&](const char* op, const std::string& text) {
    list.push_back({std::string(op) + ".made_up", op, text, ""});
  };
  for (const int n : {1, 2, 7, 8, 9, 100, 1023, 4099, 65539}) {
    const std::string size = "n" + num(n), decayed = "_d" + num(n / 2);
    for (const std::string& rule :
         Texts{"", "_m0.9", decayed + "_wd0.0005", decayed + "_m0.9_wd0.0005",
               decayed + "_m0.9_wd0.0005_nesterov", "_d" + num(n) + "_m0.9_wd0.01_nesterov", "_m0.5_nesterov",
               "_d" + num(n) + "_wd0.1"}) {
      add("sgd", size + rule);
    }
  }
  for (const int n : {1, 2, 7, 8, 9, 100, 1023, 4099, 65539}) {
    const std::string size = "n" + num(n), decayed = "_d" + num(n / 2);
    for (const std::string& rule :
         Texts{"_clip0.05", decayed + "_m0.9_wd0.0005_nesterov_clip0.1", "_clip1000"}) {
      add("sgd", size + rule);
    }
    for (const std::string& rule : Texts{"", decayed + "_wd0.01", decayed + "_wd0.05_clip0.05", "_clip1000",
                                         "_ba0.8_bb0.95_eps0.000001", "_d" + num(n) + "_ba0.5_bb0.9_wd0.1",
                                         "_ba0_bb0.99", decayed + "_eps0.01_wd0.5_clip1"}) {
      add("adamw", size + rule);
    }
  }
  for (int n = 1; n <= 40; ++n) add("grad_norm", "n" + num(n));
  for (long long n = 47; n < 2000000; n = n * 4 / 3 + 1) add("grad_norm", "n" + num(n));

  // Rows of the third image end within a vector.
  for (const char* image :
       {"n4_h32_w32_c3_m9", "n3_h7_w9_c1_m5", "n2_h8_w9_c3_m5", "n5_h8_w8_c3_m11", "n1_h16_w12_c4_m3"}) {
    for (const char* moved :
         {"", "_pad4", "_pad2_flip", "_flip", "_cut4", "_pad4_flip_cut8", "_pad4_cut3", "_flip_cut1",
          "_altflip", "_pad3_altflip_cut5", "_pad4_reflect", "_pad6_reflect_flip_cut3"}) {
      for (const char* stride : {"", "_cs8"}) {
        add("augment", std::string(image) + moved + stride);
      }
    }
  }
  return list;
}

}  // namespace kiln
