"""The words that strings of token canaries are made of: 1,024 common English ones, ten bits each.

Words of four to eight letters that are frequent in film reviews whatever their rating, and one token each (after a
space) in SmolLM2's tokenizer; a word that is several tokens does no harm.
"""

WORDS = tuple(
    """
    ability able about above absolute abuse accident account achieve across acted action actions actor actors actress
    acts actual added addition admit affair afraid again against aged agent agree ahead alike alive allow allowed almost
    alone along already amazed amount amusing ancient angle angles angry animal another answer anti anybody anymore
    anyone apart appeal appear appeared appears area arms around artistic arts asked asks aspect aspects attack audience
    author average aware away awkward back band bank based basic basis bear beat because becomes been before began begin
    behavior behind being belief believe believed beloved beyond bigger birth bits bizarre blind blow blown board bodies
    body book books bottle bought boys break breaking breaks brief bright bring broken brother build building built
    buying cable called calls came camp cannot capable capture career caring carried carry carrying cars cartoon
    cartoons case cases cast casting cause caused causes certain chance changed changes changing charge child children
    choice choose chose chosen claim class clear clearly clever climax clips close closing clothes combined come comedy
    comes coming comment comments common company compare compared confused consider constant content context continue
    control convey cool copy core correct cost costume costumes couple course covered crash crazy create creative
    credible credit crew critical cross crowd crude crying cult curious cute cutting dancing danger date daughter days
    decides decision degree deliver delivery depth deserves design designed develop direct directed directly director
    display does done double doubt down dozen drag dramatic draw drawn dress drinking drive driver during dying earlier
    early easily effect efforts eight element elements emotion ended ending ends enemy energy entirely episode escapes
    evening event ever every everyone evidence evil exact exactly example examples executed exists expect expected
    expert explains extent extra extras extreme eyes face faced faces facial fact factor facts fair fairly faith fall
    falling falls false fans fare fashion fast fault fear feature featured features feel feeling feels feet felt female
    fight fighting fights figure filled film filmed filming films final find finish finished first floor flow flying
    focus focused folks follow followed food foot footage football force forced foreign forever forget former formula
    forth forward found four frame free friend friends from front full funny further game gang garden gave genre gets
    getting ghosts girl girls give given giving goes going gone good gotten graphic graphics ground group grown guilty
    hand handle handled hands happen happened hard haunted have having head headed hear heard hearing heavily heavy held
    help here hero heroes heroine hidden hide high higher himself hired hits hold holding hole home honest hope horrific
    horse hospital huge humans humor husband ideas ignore image imagine include included industry initial insane inside
    insight instance intended interest into involved involves issue issues itself jail jobs join jump jumps just keep
    kept kick kids killers kind kinds knew know known knows ladies laid land large largely last latest latter laugh
    laughed laughing laughter lead leader leading leads learn learning leave leaves leaving left legs length less lets
    level lies like likely likes limited line list listen little local location locked long longer look looking loose
    loses loss lost lots loud lover luck machine made main mainly major majority maker makes making male manage managed
    manages manner mansion many market martial mass massive match material matter matters meaning means meant media
    member members memory mental mentally mere merely message metal middle military million mind minded minds mini
    missed missing mission mistakes model moment moments months mood moral more morning most mostly mother motion move
    movie movies much multiple music must myself mystery naive name named names near nearly need needed needs negative
    never news next nice note notice noticed novel novels number numbers numerous obsessed offer offered office officer
    once ones only onto open opened opening opens opera opinion order original other outside over overly pacing pain
    pair paper parody part partner parts party passed passing past path people person pick picked picks picture piece
    pieces pilot pity place placed places plane plans play player playing plots point points police politics portray
    possible post praise prefer prepared presence previous prime print prior prison probably problems process produce
    produced producer product program proper properly prove proved provide public pull pulled punch pure purely putting
    quality question quick quickly quite raise raised range rate rated rather ratings reach reaction read reading ready
    real realize realized really reasons recall record regard regret related relief religion remain remind reminded
    repeated replaced reporter required rescue respect rest result results returns revealed revenge reviewer reviews
    revolves rich right rights rise risk river road roll rolling room round routine ruin rule runs safe said same satire
    says scale scared scene scenery scenes school screen second section seeing seek seem seems seen segment self sell
    send sense sequence serial serious serve served serves sets setting several shame sheer shock shocked shocking
    shooting shop short shot should show showed showing shown side sight silver simply since sing singer sister site
    skills skin slightly slow smart soft sold soldiers some somehow somewhat soon sort sorts soul sound source speak
    speaking speaks special speech spends spite spoil spoken spot stand standard standing stars start started starting
    starts state station status stayed steal step stolen stop stops store story strange student studio stuff style
    subject such sudden suffer suggest sure surely surface survive suspect suspense sword sympathy system table take
    taken takes taking talent talented talents talk talking talks target task taste teacher teenage teenager teens tell
    telling tension test text than that theater theaters theatre their them then theory these they things think third
    those though thought three through till time times title titles together told tone tongue took topic toward towards
    town track trailer train training trapped travel treated trip trouble turn turned turning turns twenty twice twist
    type types typical unable under unknown unlikely until upon upset used using usual usually values various vehicle
    version very veteran victim viewer viewers villain villains voice voices vote wait waiting walks wall wanting wants
    watch watched watching water weapons wear wears week weird went were when where whether which whole whom wife will
    willing window wins winter wish wishes with within without words work worked working worth worthy would writer
    written year your
    """.split()
)
