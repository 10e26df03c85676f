# Triton for a machine without a GPU: the python backend's own environment with what model_repository/model.py runs on.
FROM nvcr.io/nvidia/tritonserver:26.07-py3
# An environment of its own, found as the first python3 on PATH (the backend ignores PYTHONPATH); made without
# ensurepip, which Ubuntu's python3 leaves out. The versions are those of local/environment.py.
RUN python3 -m venv --without-pip /stub
RUN python3 -m pip --python /stub/bin/python3 install --no-cache-dir "numpy==1.26.4" "openvino>=2026.4,<2027" "onnxruntime>=1.31,<2"
ENV PATH=/stub/bin:$PATH
USER 1000:1000
