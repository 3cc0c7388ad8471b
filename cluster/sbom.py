"""`make sbom`: a bill of materials of this environment, in CycloneDX: every installed package with version and licence.

python -m cluster.sbom build/sbom.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseAcknowledgement
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

OWN = "dynframe-rl"


def bill_of_materials(installed: Iterable[Distribution], own: Distribution) -> Bom:
    """Of these packages, with what needs what; `own` is what they are for."""
    packages: dict[str, Distribution] = {}
    for each in installed:
        packages.setdefault(canonicalize_name(each.name), each)  # the first is imported; setuptools has copies behind
    components = {name: _component(each) for name, each in packages.items() if name != canonicalize_name(own.name)}
    bom = Bom(components=components.values())
    bom.metadata.component = root = _component(own, ComponentType.APPLICATION)
    for name, component in components.items():
        bom.register_dependency(component, _needed(packages[name], components))
    bom.register_dependency(root, _needed(own, components))
    return bom


def write_bill(path: Path) -> int:
    """Write the bill of this environment; returns how many packages are in it."""
    bom = bill_of_materials(distributions(), distribution(OWN))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    path.write_text(f"{text}\n", encoding="utf-8")
    return len(bom.components)


def _component(package: Distribution, kind: ComponentType = ComponentType.LIBRARY) -> Component:
    name = canonicalize_name(package.name)
    purl = PackageURL("pypi", name=name, version=package.version)
    return Component(
        type=kind,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=str(purl),
        licenses=_licences(package),
    )


def _licences(package: Distribution) -> list:
    """As the package declares them: an SPDX expression, or else the names of its classifiers."""
    factory, metadata = LicenseFactory(), package.metadata
    declared = LicenseAcknowledgement.DECLARED
    if expression := metadata.get("License-Expression"):
        return [factory.make_from_string(expression, license_acknowledgement=declared)]
    named = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", ()) if text.startswith("License ::")]
    return [factory.make_with_name(name, acknowledgement=declared) for name in sorted(set(named))]


def _needed(package: Distribution, components: dict[str, Component]) -> Iterator[Component]:
    """Those of its requirements that are installed, extras left out."""
    for text in package.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # as of old packages, whose metadata are not refused by anybody
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and (component := components.get(canonicalize_name(requirement.name))) is not None:
            yield component


def main() -> None:
    """Write to the file that is named."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "build/sbom.json")
    sys.stdout.write(f"{write_bill(path)} packages in {path}\n")


if __name__ == "__main__":
    main()
