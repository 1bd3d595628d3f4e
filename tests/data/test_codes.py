"""Codes of languages as models and corpora write them."""

from collections import defaultdict

import pytest
from langcodes.registry_parser import parse_registry

from pelasr.data.codes import language_key
from pelasr.data.language import check_language, is_language, is_pair
from pelasr.errors import PelasrError

# MMS's codes that are more than three letters, and those near them.
MMS = """
azj-script_cyrillic azj-script_latin azb bcc-script_arabic bcc-script_latin cac-dialect_sanmateoixtatan
cac-dialect_sansebastiáncoatán cak-dialect_central cak-dialect_santamariadejesus cak-dialect_santodomingoxenacoj
cak-dialect_southcentral cak-dialect_western cak-dialect_yepocapa cmn-script_simplified cmo-script_khmer
cmo-script_latin crk-script_latin crk-script_syllabics dnj-dialect_blowowest dnj-dialect_gweetaawueast
gag-script_cyrillic gag-script_latin gof-script_latin hus-dialect_centralveracruz hus-dialect_westernpotosino
ixl-dialect_sangasparchajul ixl-dialect_sanjuancotzal ixl-dialect_santamarianebaj kff-script_telugu kmr-script_arabic
kmr-script_cyrillic kmr-script_latin ckb maa-dialect_sanantonio maa-dialect_sanjeronimo mam-dialect_central
mam-dialect_northern mam-dialect_southern mam-dialect_western ojb-script_latin ojb-script_syllabics poh-dialect_eastern
poh-dialect_western quc-dialect_central quc-dialect_east quc-dialect_north quh quy quz rif-script_arabic
rif-script_latin rmc-script_cyrillic rmc-script_latin rmy-script_cyrillic rmy-script_latin roh-dialect_sursilv
roh-dialect_vallader srp-script_cyrillic srp-script_latin hrv bos ttq-script_tifinagh taq tuk-script_arabic
tuk-script_latin tzh-dialect_bachajon tzh-dialect_tenejapa tzj-dialect_eastern tzj-dialect_western tzo-dialect_chamula
tzo-dialect_chenalho uig-script_arabic uig-script_cyrillic urd-script_arabic urd-script_devanagari urd-script_latin
uzb-script_cyrillic uzb-script_latin wal-script_ethiopic wal-script_latin yue-script_traditional hak nan ara fas ful
mon mlg lav est sqi swh npi ory orm pan pus zlm nob nno tgl aka ayr grn kpv mhr heb jav ind ron zza
"""
COMMON_VOICE = """
ab ady af am an ar ary as ast az ba bas be bg bm bn br brx bs ca cak ceb ckb cnh co cs cv cy da dag de doi dsb dv dyu
el el-CY en eo es et eu fa ff fi fil fo fr fuf fy-NL ga-IE gd gl gn gom gsw gu gv ha he hi hil hr hsb ht hu hy-AM hyw ia
id ie ig is it izh ja jbo jv ka kaa kab kbd kk km kmr kn knn ko kpv kw ky lb lg lij ln lo lt ltg lv lzz mai mdf mg mhr
mk ml mn mni mos mr mrj ms-MY mt my myv nan-tw ne-NP nhe nhi nia nl nn-NO nso nyn oc om or os pa-IN pap-AW pl ps
pt quc quy rm-sursilv rm-vallader ro ru rw sah sat sc scn sco sd shi si sk skr sl snk sq sr ss st sv-SE sw syr ta te tg
th ti tig tk tn to tr ts tt tw tyv uby udm ug uk ur uz ve vec vi vmw vot xh xmf yi yo yue zgh zh-CN zh-HK zh-TW zu
zza
"""
# FLEURS' codes beside MMS's.
FLEURS = """
af_za=afr am_et=amh ar_eg=ara as_in=asm ast_es=ast az_az=azj-script_latin be_by=bel bg_bg=bul bs_ba=bos ca_es=cat
ceb_ph=ceb ckb_iq=ckb cmn_hans_cn=cmn-script_simplified cs_cz=ces cy_gb=cym da_dk=dan de_de=deu el_gr=ell en_us=eng
et_ee=est fa_ir=fas ff_sn=ful fi_fi=fin fil_ph=tgl fr_fr=fra ga_ie=gle gl_es=glg gu_in=guj ha_ng=hau he_il=heb
hi_in=hin hr_hr=hrv hu_hu=hun hy_am=hye id_id=ind ig_ng=ibo is_is=isl it_it=ita ja_jp=jpn jv_id=jav ka_ge=kat
kam_ke=kam kea_cv=kea kk_kz=kaz km_kh=khm kn_in=kan ko_kr=kor ky_kg=kir lb_lu=ltz lg_ug=lug ln_cd=lin lo_la=lao
lt_lt=lit luo_ke=luo lv_lv=lav mi_nz=mri mk_mk=mkd ml_in=mal mn_mn=mon mr_in=mar ms_my=zlm mt_mt=mlt my_mm=mya
nb_no=nob ne_np=npi nl_nl=nld nso_za=nso ny_mw=nya oc_fr=oci om_et=orm or_in=ory pa_in=pan pl_pl=pol ps_af=pus
pt_br=por ro_ro=ron ru_ru=rus sk_sk=slk sl_si=slv sn_zw=sna so_so=som sr_rs=srp-script_cyrillic sv_se=swe ta_in=tam
te_in=tel tg_tj=tgk th_th=tha tr_tr=tur uk_ua=ukr ur_pk=urd-script_arabic uz_uz=uzb-script_latin vi_vn=vie wo_sn=wol
xh_za=xho yo_ng=yor yue_hant_hk=yue-script_traditional zu_za=zul
"""
ELSEWHERE = {"bn_in": "bn.IN", "es_419": "es.419", "sd_in": "sd.IN", "sw_ke": "sw.KE"}  # not the usual region


def fleurs():
    return dict(word.split("=") for word in FLEURS.split())


@pytest.mark.parametrize(
    "code, key",
    [
        ("hin", "hi"),
        ("HIN", "hi"),
        ("azj-script_latin", "az"),
        ("azj-script_cyrillic", "az.Cyrl"),
        ("azb", "azb"),
        ("uig-script_arabic", "ug"),
        ("cmn-script_simplified", "zh"),
        ("cmn_Hant", "zh.Hant"),
        ("zh-CN", "zh"),
        ("zh-TW", "zh.TW"),
        ("zh-Hant-TW", "zh.TW"),
        ("yue-script_traditional", "yue"),
        ("nan-tw", "nan.TW"),
        ("sv-SE", "sv"),
        ("pa-IN", "pa"),
        ("pa_Guru", "pa"),
        ("pa-PK", "pa.PK"),
        ("pt_br", "pt"),
        ("pt-PT", "pt.PT"),
        ("rm-sursilv", "rm_sursilv"),
        ("roh-dialect_sursilv", "rm_sursilv"),
        ("cac-dialect_sansebastiáncoatán", "cac_sansebastiancoatan"),
        ("ojb-script_syllabics", "ojb.Cans"),
        ("srp-script_latin", "sr.Latn"),
        ("jw", "jv"),
        ("iw", "he"),
        ("tl", "tl"),
        ("fil", "tl"),
        ("nob", "nb"),
        ("no", "no"),
        ("prs", "fa.AF"),
        ("fat", "fat"),
        ("Hindi", "hi"),
        ("burmese", "my"),
        ("haitian creole", "ht"),
    ],
)
def test_keys(code, key):
    assert language_key(code) == key
    assert language_key(key.replace(".", "-").replace("_", "-dialect_")) == key


@pytest.mark.parametrize("codes", [MMS, COMMON_VOICE, " ".join([*fleurs(), *ELSEWHERE])], ids=["MMS", "CV", "FLEURS"])
def test_one_key_for_each_code_of_a_source(codes):
    keys = [language_key(code) for code in codes.split()]
    assert len(set(keys)) == len(keys)
    assert all(is_language(key) and not is_pair(key) for key in keys)


def test_models_and_corpora_agree():
    for code, other in fleurs().items():
        assert language_key(code) == language_key(other), code
    for code, key in ELSEWHERE.items():
        assert language_key(code) == key


def test_whisper():
    """Its codes and its names, two ways to call the same languages."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    keys = {code: language_key(code) for code in LANGUAGES}
    assert len(set(keys.values())) == len(keys)
    assert {name: language_key(name) for name in TO_LANGUAGE_CODE} == {
        name: keys[code] for name, code in TO_LANGUAGE_CODE.items()
    }


def test_every_code_of_iso_639():
    """Two codes are one language where ISO has a code for it alone and one for it with its kin, and nowhere else."""
    entries = [entry for entry in parse_registry() if entry["Type"] == "language" and ".." not in entry["Subtag"]]
    used = [entry["Subtag"] for entry in entries if "Deprecated" not in entry and entry["Subtag"] != "und"]
    assert len(used) > 7000
    keys = defaultdict(set)
    for code in used:
        keys[language_key(code)].add(code)
    assert all(is_language(key) and not is_pair(key) for key in keys)
    shared = {key: codes for key, codes in keys.items() if len(codes) > 1}
    assert shared.pop("suj") == {"suj", "xsj"}  # as CLDR has it
    kin = {entry["Subtag"]: entry.get("Macrolanguage") for entry in entries} | {"fil": "tl", "ydd": "yi"}
    assert all(codes - {key} <= {code for code in kin if kin[code] == key} for key, codes in shared.items())
    assert shared["zh"] == {"zh", "cmn"} and shared["az"] == {"az", "azj"} and len(shared) < 50


@pytest.mark.parametrize(
    "code, hint",
    [("hindy", r"hindi \(hi\)"), ("Telgu", r"telugu \(te\)"), ("xq", "did you mean"), ("../x", "ISO 639"), ("", "ISO")],
)
def test_unknown_codes(code, hint):
    with pytest.raises(PelasrError, match=f"is no code or name of a language; .*{hint}") as caught:
        language_key(code)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["und", "x-own", "en-x-own", "de-u-co-phonebk", "hi\n", "hi-", "-"])
def test_what_is_no_language(code):
    with pytest.raises(PelasrError, match="is no code or name"):
        language_key(code)


@pytest.mark.parametrize("code, key", [("sv-SE", "sv"), ("pt-PT", "pt.PT"), ("zh-Hant", "zh.Hant"), ("zh-TW", "zh.TW")])
def test_a_code_with_a_region_is_not_taken_for_a_pair(code, key):
    with pytest.raises(PelasrError, match=rf"--langs: '{code}' would be a pair; write {key}, or the pair in small"):
        check_language(code, "--langs")


@pytest.mark.parametrize("key", ["sv", "pt.PT", "en-de", "sv-se", "en-zh.TW", "zh.TW-en", "en-YY", "a-B"])
def test_pairs_are_pairs(key):
    check_language(key, "--langs")
