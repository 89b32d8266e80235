# The command `glcanet` in an image. CI runs its RUN lines (.ci/docker-steps) in a fresh environment; the image itself is untried.
#   docker build -t glcanet .                                # for CPUs
#   docker build -t glcanet --build-arg EXTRAS='[cuda]' .    # for NVIDIA GPUs: docker run --gpus all
#   docker run --rm -v "$PWD:/work" glcanet predict scene.tif --weights demo --out maps
FROM python:3.12
ARG EXTRAS=""
WORKDIR /source
COPY . .
RUN .ci/docker-steps /opt/glcanet ".${EXTRAS}"
ENV PATH=/opt/glcanet/bin:$PATH
WORKDIR /work
ENTRYPOINT ["glcanet"]
