# The worker: Python, its locked libraries and orchestrator/. No torch, no CUDA; the networks are Triton's.
#   docker build -f deploy/docker/orchestrator.Dockerfile -t remarque-orchestrator .
FROM python:3.11.14-slim-bookworm AS libraries
COPY deploy/docker/requirements.txt /tmp/requirements.txt
RUN python3 -m venv /venv
# Hashes: what was tested is what is installed, whatever the index serves later. Wheels only: there is no compiler here.
RUN /venv/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: -r /tmp/requirements.txt

FROM python:3.11.14-slim-bookworm
# 1000 is also the user of NVIDIA's Triton image: shared memory is created by one and opened by the other.
RUN groupadd --gid 1000 remarque && useradd --uid 1000 --gid 1000 --no-create-home remarque \
    && mkdir -p /var/lib/remarque && chown 1000:1000 /var/lib/remarque
COPY --from=libraries /venv /venv
COPY orchestrator /app/orchestrator
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HTTP_ADDRESS=0.0.0.0:8080 MODEL_REPOSITORY=/models \
    STYLE_FOLDER=/var/lib/remarque/styles DEVELOPMENT_KEY_FOLDER=/var/lib/remarque/development-key
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["python", "-m", "orchestrator"]
CMD ["work"]
