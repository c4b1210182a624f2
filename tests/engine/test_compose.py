"""A compose project with two services that share a volume of the driver, by pytest-docker."""

import pytest
from pytest_docker.plugin import Services

from tests.support.tools.driver import Driver


def test_services_share_a_volume(docker_services: Services) -> None:
    """The reader, another user, reads the writer's file, and may not write."""
    compose = docker_services._docker_compose

    assert b"from-writer" in compose.execute("exec -T reader cat /shared/greeting")
    with pytest.raises(Exception, match="Read-only file system"):
        compose.execute("exec -T reader touch /shared/greeting")


@pytest.mark.usefixtures("docker_services")
def test_the_volume_has_the_options_of_the_compose_file(
    driver: Driver, docker_compose_project_name: str
) -> None:
    volume = driver.client.volumes.get(f"{docker_compose_project_name}_shared")

    assert driver.status(volume)["options"]["cache"] == "never"
