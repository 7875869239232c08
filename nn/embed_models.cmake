# cmake -DOUTPUT=<file.cpp> -DMODELS=<a.json;b.json> -P embed_models.cmake: the models as string constants.
# Separator in MODELS is '|', since ';' does not survive every command line.
string(REPLACE "|" ";" MODELS "${MODELS}")
set(code "// Generated from nn/models by embed_models.cmake.\n#include \"nn/embedded_models.h\"\n\nnamespace kiln {\n\n")
string(APPEND code "const std::vector<EmbeddedModel>& embedded_models() {\n")
string(APPEND code "  static const std::vector<EmbeddedModel> models = {\n")
foreach(model IN LISTS MODELS)
  get_filename_component(name ${model} NAME_WE)
  file(READ ${model} text)
  string(APPEND code "      {\"${name}\", R\"kiln_json(${text})kiln_json\"},\n")
endforeach()
string(APPEND code "  };\n  return models;\n}\n\n}  // namespace kiln\n")
file(WRITE ${OUTPUT} "${code}")
