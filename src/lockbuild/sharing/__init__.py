from lockbuild.sharing.build import Delivery, SharedBuild, shared_build
from lockbuild.sharing.key import SharingKey, sharing_key

__all__ = ["Delivery", "SharedBuild", "SharingKey", "shared_build", "sharing_key"]
