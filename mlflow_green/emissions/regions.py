"""Where the regions of cloud providers lie, as the providers say; facts, so without a licence.

Amazon: "AWS Regions"; Microsoft: "List of Azure regions"; both as of 2025. A place is a country (ISO 3166-1 alpha-3),
in the United States with the state. Google publishes the carbon intensity of its regions itself. Nothing is guessed
from the name of a region that is missing here.
"""

from __future__ import annotations

from collections.abc import Mapping

COUNTRIES_WITHOUT_ONE_GRID = frozenset({"CAN"})
"""Quebec's electricity is almost all hydro, Alberta's mostly gas: the country's mean would be wrong in both."""

_AMAZON = """
af-south-1 ZAF; ap-east-1 HKG; ap-east-2 TWN; ap-northeast-1 JPN; ap-northeast-2 KOR; ap-northeast-3 JPN;
ap-south-1 IND; ap-south-2 IND; ap-southeast-1 SGP; ap-southeast-2 AUS; ap-southeast-3 IDN; ap-southeast-4 AUS;
ap-southeast-5 MYS; ap-southeast-6 NZL; ap-southeast-7 THA; ca-central-1 CAN; ca-west-1 CAN; cn-north-1 CHN;
cn-northwest-1 CHN; eu-central-1 DEU; eu-central-2 CHE; eu-north-1 SWE; eu-south-1 ITA; eu-south-2 ESP; eu-west-1 IRL;
eu-west-2 GBR; eu-west-3 FRA; il-central-1 ISR; me-central-1 ARE; me-south-1 BHR; mx-central-1 MEX; sa-east-1 BRA;
us-east-1 USA/virginia; us-east-2 USA/ohio; us-west-1 USA/california; us-west-2 USA/oregon
"""
_MICROSOFT = """
australiacentral AUS; australiacentral2 AUS; australiaeast AUS; australiasoutheast AUS; austriaeast AUT;
belgiumcentral BEL; brazilsouth BRA; brazilsoutheast BRA; canadacentral CAN; canadaeast CAN; centralindia IND;
centralus USA/iowa; chilecentral CHL; eastasia HKG; eastus USA/virginia; eastus2 USA/virginia; francecentral FRA;
francesouth FRA; germanynorth DEU; germanywestcentral DEU; indonesiacentral IDN; israelcentral ISR; italynorth ITA;
japaneast JPN; japanwest JPN; koreacentral KOR; koreasouth KOR; malaysiawest MYS; mexicocentral MEX;
newzealandnorth NZL; northcentralus USA/illinois; northeurope IRL; norwayeast NOR; norwaywest NOR; polandcentral POL;
qatarcentral QAT; southafricanorth ZAF; southafricawest ZAF; southcentralus USA/texas; southeastasia SGP;
southindia IND; spaincentral ESP; swedencentral SWE; switzerlandnorth CHE; switzerlandwest CHE; uaecentral ARE;
uaenorth ARE; uksouth GBR; ukwest GBR; westcentralus USA/wyoming; westeurope NLD; westindia IND; westus USA/california;
westus2 USA/washington; westus3 USA/arizona
"""


def _places(text: str) -> Mapping[str, str]:
    pairs = (pair.split() for pair in text.split(";"))
    return {region: place for region, place in pairs}  # noqa: C416 - a pair is a list here, not a tuple


REGIONS: Mapping[str, Mapping[str, str]] = {"aws": _places(_AMAZON), "azure": _places(_MICROSOFT)}
"""Provider and region to the place whose grid it draws from."""
