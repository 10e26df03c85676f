# Builds engines with the very TensorRT that will load them: a plan is tied to its exact version.
#   docker compose run --rm build-engines
FROM nvcr.io/nvidia/tritonserver:26.07-py3
COPY pyproject.toml constraints.txt README.md /app/
COPY orchestrator /app/orchestrator
COPY export /app/export
COPY local /app/local
COPY model_repository /app/model_repository
# With the image's own packages in sight: where it brings Python's tensorrt, that one is used.
RUN python3 -m venv --without-pip --system-site-packages /venv
RUN python3 -m pip --python /venv/bin/python3 install --no-cache-dir -c /app/constraints.txt "/app[export]"
# TRT_VERSION is NVIDIA's, of the library in the image. Another version would build plans that Triton refuses to load.
RUN /venv/bin/python3 -c "import tensorrt" \
    || python3 -m pip --python /venv/bin/python3 install --no-cache-dir "tensorrt==${TRT_VERSION%%+*}"
RUN /venv/bin/python3 -c "import os, tensorrt; assert os.environ['TRT_VERSION'].startswith(tensorrt.__version__), tensorrt.__version__"
RUN mkdir /cache && chown 1000:1000 /cache
WORKDIR /app
ENV PATH=/venv/bin:$PATH
USER 1000:1000
ENTRYPOINT ["python3", "export/build_engines.py"]
